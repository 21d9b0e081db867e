"""A run small enough to follow by hand: two layers, 4-bit weights, LoRA, two steps. No torch.

Each allocation and each free gets the next tick. Most sizes are not multiples of 512, so blocks and raw bytes differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from axmem_trace.ledger import Allocation, Ledger, Mark
from axmem_trace.model_facts import ModelFacts, ModuleFact, TensorFact
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import (
    Adapter,
    BaseModel,
    Batch,
    Checkpointing,
    Gpu,
    Model,
    Optimizer,
    Quantisation,
    Reason,
    Recipe,
)
from axmem_trace.report import Report, make_report

CONTEXT_BYTES = 400 << 20
SEGMENT = 2 << 20


@dataclass
class Writer:
    """Builds a ledger in order of time."""

    allocations: list[Allocation] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    tick: int = 0

    def mark(self, phase: str, step: int, micro_batch: int = 0) -> None:
        self.marks.append(Mark(tick=self.tick, phase=phase, step=step, micro_batch=micro_batch))

    def allocate(self, nbytes: int, module: str, op: str, **rest: Any) -> int:
        now = self.marks[-1]
        self.allocations.append(
            Allocation(
                nbytes=nbytes, allocated_tick=self.tick, module=module, op=op, phase=now.phase, step=now.step, **rest
            )
        )
        self.tick += 1
        return len(self.allocations) - 1

    def free(self, *indices: int) -> None:
        for index in indices:
            self.allocations[index] = replace(self.allocations[index], freed_tick=self.tick)
            self.tick += 1

    def ledger(self) -> Ledger:
        return Ledger(allocations=tuple(self.allocations), marks=tuple(self.marks), ticks=self.tick)


LAYERS = ("model.layers.0", "model.layers.1")


def make_facts() -> ModelFacts:
    """Logical parameters: 6400 + 2 * (4096 + 512 + 512) + 6400 = 23040. 2048 of them are trainable.

    Bytes: weights 2 * 12800 + 2 * (2048 + 260) = 30216, adapters 2 * 2 * 2048 = 8192.
    """
    tensors = [tensor("model.embed", "weight", "bfloat16", 6400, 12800)]
    for layer in LAYERS:
        tensors += [
            tensor(f"{layer}.proj", "weight", "uint8", 2048, 2048, logical=4096),
            tensor(f"{layer}.proj", "absmax", "float32", 65, 260, kind="buffer", logical=0),
            tensor(f"{layer}.proj.lora_A", "weight", "float32", 512, 2048, role="adapter", trainable=True),
            tensor(f"{layer}.proj.lora_B", "weight", "float32", 512, 2048, role="adapter", trainable=True),
        ]
    tensors.append(tensor("lm_head", "weight", "bfloat16", 6400, 12800))
    classes = {"": "TinyForCausalLM", "model": "TinyModel", "model.embed": "Embedding", "model.layers": "ModuleList"}
    for layer in LAYERS:
        classes |= {layer: "TinyLayer", f"{layer}.proj": "Linear4bit"}
        classes |= {f"{layer}.proj.lora_A": "Linear", f"{layer}.proj.lora_B": "Linear"}
    classes["lm_head"] = "Linear"
    return ModelFacts(
        name="somebody/tiny-<b>",
        model_type="tiny",
        class_name="TinyForCausalLM",
        config_source="directory /models/tiny",
        tensors=tuple(tensors),
        modules=tuple(ModuleFact(name=name, class_name=class_name) for name, class_name in classes.items()),
    )


def tensor(
    module: str,
    name: str,
    dtype: str,
    elements: int,
    nbytes: int,
    *,
    kind: str = "parameter",
    role: str = "weight",
    trainable: bool = False,
    logical: int = -1,
) -> TensorFact:
    return TensorFact(
        name=f"{module}.{name}",
        module=module,
        kind=kind,
        role=role,
        dtype=dtype,
        trainable=trainable,
        elements=elements,
        logical_elements=elements if logical < 0 else logical,
        nbytes=nbytes,
    )


def make_ledger() -> Ledger:
    """Loading, then twice forward, backward and optimizer."""
    write = Writer()
    write.mark("load", 0)
    for fact in make_facts().tensors:
        write.allocate(fact.nbytes, fact.module, "load", role=fact.role)
    adapters = [f"{layer}.proj.{half}" for layer in LAYERS for half in ("lora_A", "lora_B")]
    for step in (1, 2):
        write.mark("forward", step)
        tokens = write.allocate(800, "", "tokens", role="input")
        hidden = [write.allocate(6400, layer, "aten.mm.default", kept=True, output=True) for layer in LAYERS]
        transient = write.allocate(20000, "model.layers.1.proj", "dequantize_4bit")
        write.free(transient)
        logits = write.allocate(40000, "lm_head", "aten.mm.default", kept=True, output=True)
        write.mark("backward", step)
        logits_gradient = write.allocate(40000, "lm_head", "aten._log_softmax_backward_data.default")
        write.free(logits)
        gradients = [write.allocate(2048, name, "accumulate", role="gradient") for name in reversed(adapters)]
        write.free(logits_gradient, *hidden)
        write.mark("optimizer", step)
        if step == 1:
            for name in adapters:
                write.allocate(4100, name, "state", role="optimizer")
                write.allocate(4, name, "step", role="optimizer", device="cpu")
        write.free(*gradients, tokens)
    return write.ledger()


def make_reservation(ledger: Ledger, **rest: Any) -> Any:
    """Reserved bytes if every segment has 2 MiB: there is always one segment."""
    spans = {(mark.phase, mark.step): SEGMENT for mark in ledger.marks}
    values = {
        "peak_reserved_bytes": SEGMENT,
        "peak_allocated_bytes": 0,
        "peak_active_bytes": 0,
        "active_peaks": {},
        "peaks": spans,
        "allocated_peaks": {},
        "allocated_ends": {},
        "out_of_memory": None,
        "reserved_at": lambda tick: SEGMENT,
    }
    return SimpleNamespace(**{**values, **rest})


def make_recipe(memory_bytes: int = 0) -> Recipe:
    return Recipe(
        name="tiny.yml",
        model=Model(base=BaseModel(name="somebody/tiny-<b>", config={}, source="directory /models/tiny")),
        quantisation=Quantisation(method="bnb_4bit"),
        adapter=Adapter(kind="qlora", rank=8),
        checkpointing=Checkpointing(enabled=True, use_reentrant=False),
        optimizer=Optimizer(name="adamw_torch"),
        batch=Batch(rows=1, row_tokens=100, gradient_accumulation_steps=1),
        gpu=Gpu(name="test card" if memory_bytes else "", memory_bytes=memory_bytes, context_bytes=CONTEXT_BYTES),
        reasons={
            "attention.kernel": Reason(value="sdpa", text="axolotl's default", origin="default"),
            "optimizer.name": Reason(value="adamw_torch", text="", origin="config", line=7),
        },
        notes=(Note(kind="ignored", key="wandb_project", text="no effect on <memory>", line=9),),
    )


NOTES = (
    Note(kind="traced", key="model", text="forward, backward and optimizer ran on meta"),
    Note(kind="ruled", key="quantize_4bit", text="bitsandbytes' layout", bytes=4096),
    Note(kind="assumed", key="cuda_context", text="400 MiB outside the allocator", bytes=CONTEXT_BYTES),
    Note(kind="warning", key="lora_target_modules", text="[red]no[/red] such module"),
)


def make_hand_made_report(memory_bytes: int = 0, **reservation: Any) -> Report:
    ledger = make_ledger()
    return make_report(
        make_recipe(memory_bytes),
        make_facts(),
        ledger,
        make_reservation(ledger, **reservation),
        notes=NOTES,
        versions={"axmem_trace": "0.1.0", "torch": "2.13.0"},
        elapsed_seconds={"import": 1.5, "build": 0.25, "trace": 0.5, "replay": 0.125},
        moments=True,
    )
