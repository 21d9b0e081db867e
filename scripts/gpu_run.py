"""A recipe run for real on a CUDA GPU, with random weights: the model as `axmem_trace` builds it, stepped by the same
loop (`axmem_trace/training/step.py`), under a recorder that asks CUDA's allocator instead of keeping a ledger.

Used by `measure_on_gpu.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.models.build import change_loaded
from axmem_trace.models.built import BuiltModel
from axmem_trace.models.checkpointing import enable_checkpointing
from axmem_trace.models.model_class import find_model_class
from axmem_trace.models.model_config import build_model_config
from axmem_trace.models.quantisation import choose_quantizer
from axmem_trace.models.skeleton import build_skeleton
from axmem_trace.models.walk import record_facts
from axmem_trace.notes import Note
from axmem_trace.recipe.types import Recipe
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.step import Run

INITIAL_DEVIATION = 0.02
REAL_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Those of which the estimate steps torch's own class; of others it steps a stand-in, which would measure itself."""
REAL_LOSSES = ("native", "shifted_copy", "upcast_shifted_copy", "half_shifted_copy", "none")
ATTENTION_PACKAGES = {"sdpa": "", "eager": "", "flash_attention_2": "flash_attn", "flex_attention": ""}


def check_runnable(recipe: Recipe) -> None:
    """Refuses what only stands for a kernel on meta, and would measure a stand-in.

    Raises:
        ConfigError: with what to change.
    """
    kernel = recipe.attention.kernel
    refusals = (
        (recipe.optimizer.name not in REAL_OPTIMIZERS, "optimizer", recipe.optimizer.name, ", ".join(REAL_OPTIMIZERS)),
        (recipe.loss.path not in REAL_LOSSES or recipe.loss.cross_entropy != "torch", "loss", recipe.loss.path,
         "the model's own loss: no fused or chunked cross-entropy"),
        (bool(recipe.kernels.liger), "plugins", "Liger", "no Liger kernels"),
        (bool(recipe.kernels.lora), "lora_kernels", ", ".join(sorted(recipe.kernels.lora)),
         "no fused LoRA kernels (--assume lora_kernels=false)"),
        (recipe.kernels.tiled_mlp or recipe.kernels.torch_compile, "tiled_mlp, torch_compile", True, "neither"),
        (kernel not in ATTENTION_PACKAGES, "attention", kernel, ", ".join(ATTENTION_PACKAGES)),
        (recipe.quantisation.method not in ("none", "bnb_4bit", "bnb_8bit"), "quantisation",
         recipe.quantisation.method, "none, or bitsandbytes in 4 or 8 bit"),
        (recipe.checkpointing.offload != "none" or recipe.checkpointing.layer_offloading, "offloading", True, "none"),
    )  # fmt: skip
    for refused, key, value, accepted in refusals:
        if refused:
            raise ConfigError(problem="this can be estimated, but not run here for real", key=key, value=value,
                              accepted=accepted)  # fmt: skip
    package = ATTENTION_PACKAGES[kernel]
    if package:
        from importlib.util import find_spec

        if find_spec(package) is None:
            raise ConfigError(problem=f"{kernel} needs the package {package}", key="attention", value=kernel,
                              remedy="install it, or set sdp_attention: true")  # fmt: skip


def build_on_device(recipe: Recipe, device: str) -> BuiltModel:
    """`axmem_trace.models.build_model`, in the same order, with real tensors on `device`; quantised where asked for."""
    notes: list[Note] = []
    config = build_model_config(recipe, notes)
    model_class, config = find_model_class(recipe, config, notes)
    quantizer = choose_quantizer(recipe, config, notes)
    dtype = quantizer.load_dtype(getattr(torch, recipe.precision.load_dtype))
    with torch.device(device):
        model = build_skeleton(
            model_class, config, recipe, dtype, device, notes, lambda model: quantizer.replace_modules(model, dtype)
        )
    materialise(model, dtype, device)
    if hasattr(quantizer, "hf_quantizer"):
        quantizer.hf_quantizer.postprocess_model(model)
    model = change_loaded(model, recipe, notes, experts_quantised=False).to(device)
    enable_checkpointing(model, recipe, notes)
    model.train()
    facts = record_facts(model, (), recipe)
    return BuiltModel(module=model, config=model.config, facts=facts, state_tensors=(), notes=notes)


def materialise(model: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Random values for what a quantizer left on meta; bitsandbytes quantises its weights when they reach the GPU.

    Weights go one by one, so that the whole model is never there unquantised.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            quantised = hasattr(parameter, "quant_type") or hasattr(parameter, "has_fp16_weights")
            if parameter is None or not (parameter.is_meta or quantised):
                continue
            shape = (module.out_features, module.in_features) if quantised else parameter.shape
            values = torch.empty(shape, dtype=dtype if quantised else parameter.dtype, device=device)
            values.normal_(std=INITIAL_DEVIATION)
            if quantised:
                settings = {key: value for key, value in parameter.__dict__.items() if not key.startswith("_")}
                settings |= {"requires_grad": False}
                for unset in ("quant_state", "bnb_quantized", "CB", "SCB"):
                    settings.pop(unset, None)
                module._parameters[name] = type(parameter)(values, **settings).to(device)
            else:
                module._parameters[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device=device)


class GpuRecorder:
    """Stands where the trace's recorder stands in `Run`: at each mark, what CUDA's allocator says of the phase that
    ends there."""

    now = 0

    def __init__(self, device: str) -> None:
        self.device = device
        self.phases: list[dict[str, Any]] = []
        self.values = SimpleNamespace(num_true={})
        self.context = SimpleNamespace(note=lambda note: None)
        self._phase: dict[str, Any] | None = None
        self._reset()

    def mark(self, phase: str, step: int, micro_batch: int = 0) -> None:
        """Another phase begins."""
        self.close()
        self._phase = {"phase": phase, "step": step, "micro_batch": micro_batch}
        self._reset()

    def close(self) -> None:
        """The phase going on has ended."""
        if self._phase is not None:
            self.phases.append({**self._phase, **read_allocator()})
            self._phase = None

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)

    def register(self, tensor: torch.Tensor, **facts: Any) -> None:
        """Nothing: CUDA does not ask what a tensor is for."""

    def born_at(self, tensor: torch.Tensor) -> int:
        return 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        yield

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def _reset(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def read_allocator() -> dict[str, int]:
    """Bytes at the end of a phase, and the most during it."""
    torch.cuda.synchronize()
    statistics = torch.cuda.memory_stats()
    return {
        "end_bytes": torch.cuda.memory_allocated(),
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "active_bytes": statistics["active_bytes.all.peak"],
        "reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def run_recipe(recipe: Recipe, *, history: bool = False) -> tuple[dict[str, int], list[dict[str, Any]], Any]:
    """What is allocated after load, what each phase took, and with `history` the allocator's own snapshot."""
    if history:
        torch.cuda.memory._record_memory_history(max_entries=1_000_000, stacks="python")
    built = build_on_device(recipe, "cuda")
    gc.collect()
    torch.cuda.empty_cache()
    after_load = read_allocator()
    optimizer = build_optimizer(recipe, built.module)
    recorder: Any = GpuRecorder("cuda")
    Run(recipe, built, optimizer, recorder, offloading=lambda: nullcontext(nullcontext), repeat=False).record()
    recorder.close()
    return after_load, recorder.phases, torch.cuda.memory._snapshot() if history else None
