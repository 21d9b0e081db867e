"""Runs a recipe on a real CUDA GPU, with random weights. `axmem_trace` builds the model, and the same loop trains it
(`axmem_trace/training/run.py`). The recorder reads CUDA's allocator instead of writing a ledger.

Used by `measure_on_gpu.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from gpu_model import build_on_device
from gpu_ranks import check_ranks, divide_for_real, gather, joined, loads_on_host
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Older, Recipe
from axmem_trace.recipe.run import BITSANDBYTES_OPTIMIZERS
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.optimizers.names import ALIASES
from axmem_trace.training.optimizers.traced import TracedOptimizer
from axmem_trace.training.run import Run
from axmem_trace.training.trace import garbage_on_demand

REAL_OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "sgd",
    "adagrad",
    "rmsprop",
    "adafactor",
    *BITSANDBYTES_OPTIMIZERS,
)
"""The estimate runs the library's own class of these. Of others it runs a replacement, which must not be measured
against itself."""
REAL_LOSSES = ("native", "none")
COMPARES_LOG_PROBABILITIES = ("dpo", "ipo", "simpo", "orpo", "kto")
ATTENTION_PACKAGES = {"sdpa": "", "eager": "", "flash_attention_2": "flash_attn", "flex_attention": ""}
REAL_EXPERTS = ("", "eager", "grouped_mm", "batched_mm")
KERNEL_PACKAGES = {"mamba-ssm": "mamba_ssm", "flash-linear-attention": "fla", "rwkv": "kernels"}
"""The module to import, by the key of the note in which the estimate assumes a package's kernels."""


def check_runnable(recipe: Recipe) -> None:
    """Refuses settings for which the estimate replaces a kernel on meta: the replacement would be measured.

    Raises:
        ConfigError: with what to change.
    """
    for refused, key, value, accepted in _list_refusals(recipe):
        if refused:
            raise ConfigError(
                problem="this can be estimated, but not run here for real", key=key, value=value, accepted=accepted
            )
    check_ranks(recipe)
    kernel = recipe.attention.kernel
    package = ATTENTION_PACKAGES[kernel]
    if package and find_spec(package) is None:
        raise ConfigError(
            problem=f"{kernel} needs the package {package}, which is not installed",
            key="attention",
            value=kernel,
            remedy=f"install it, or set sdp_attention: true in place of {kernel}",
        )


def check_kernels(notes: Iterable[Note]) -> None:
    """Refuses a model whose layers run here with other code than in the estimate: without the package, transformers
    uses a loop in torch, which needs several times as much memory.

    Raises:
        ConfigError: the message says what to install.
    """
    for note in notes:
        package = KERNEL_PACKAGES.get(note.key)
        if package and find_spec(package) is None:
            raise ConfigError(
                problem=f"the estimate counts on {note.key}, which is not installed here",
                key="base_model",
                details=(note.text,),
                remedy=f"install {note.key}",
            )


def _list_refusals(recipe: Recipe) -> tuple[tuple[bool, str, Any, str], ...]:
    """A list of (whether it is refused, key, value, accepted values)."""
    optimizer = ALIASES.get(recipe.optimizer.name, recipe.optimizer.name)
    kernels, quantisation = recipe.kernels, recipe.quantisation
    is_old = replace(recipe.older, use_cache=False) != Older()
    placement, objective = recipe.placement, recipe.objective
    on_host = placement.on_host_first or placement.on_host or placement.max_memory
    return (
        (optimizer not in REAL_OPTIMIZERS, "optimizer", recipe.optimizer.name, ", ".join(REAL_OPTIMIZERS)),
        (
            recipe.loss.path not in REAL_LOSSES or recipe.loss.cross_entropy != "torch",
            "loss",
            recipe.loss.path,
            "the model's own loss: no fused or chunked cross-entropy",
        ),
        (bool(kernels.liger), "plugins", "Liger", "no Liger kernels"),
        (
            bool(kernels.lora),
            "lora_kernels",
            ", ".join(sorted(kernels.lora)),
            "no fused LoRA kernels (--assume lora_kernels=false)",
        ),
        (kernels.tiled_mlp or kernels.torch_compile, "tiled_mlp, torch_compile", True, "neither"),
        (
            recipe.attention.kernel not in ATTENTION_PACKAGES
            or recipe.attention.fused_attn_kernel
            or recipe.attention.gemma4_hybrid,
            "attention",
            recipe.attention.kernel,
            ", ".join(ATTENTION_PACKAGES),
        ),
        (
            recipe.model.experts_implementation not in REAL_EXPERTS,
            "experts_implementation",
            recipe.model.experts_implementation,
            ", ".join(filter(None, REAL_EXPERTS)),
        ),
        (
            quantisation.method not in ("none", "bnb_4bit", "bnb_8bit") or quantisation.quantise_moe_experts,
            "quantisation",
            quantisation.method,
            "none, or linear layers by bitsandbytes in 4 or 8 bit",
        ),
        (recipe.fake_quantisation is not None, "qat", True, "none"),
        (
            recipe.checkpointing.offload != "none"
            or recipe.checkpointing.layer_offloading
            or recipe.checkpointing.selective_offload,
            "offloading",
            True,
            "none",
        ),
        (bool(on_host) or recipe.adapter.on_cpu, "device_map", "weights on the host", "the whole model on the GPU"),
        (recipe.allocator.backend != "native", "allocator", recipe.allocator.backend, "PyTorch's own allocator"),
        (is_old, "assume", "code of older libraries", "what the installed libraries do"),
        (
            objective.method in COMPARES_LOG_PROBABILITIES and objective.helpers != "torch",
            "rl",
            objective.method,
            "log-probabilities by PyTorch's own kernels (--assume loss_helpers=torch)",
        ),
        (objective.rollouts is not None, "rl", objective.method, "methods that generate nothing"),
        (
            recipe.evaluation.generated_rows > 0 or bool(recipe.adapter.relora_steps) or recipe.loss.teacher_tokens > 0,
            "trainer",
            "generation, ReLoRA or distillation",
            "plain steps and evaluation",
        ),
    )


class GpuRecorder:
    """Used in `Run` instead of the trace's recorder: at each mark, it reads CUDA's allocator for the phase that ends
    there."""

    now = 0

    def __init__(self, device: str) -> None:
        self.device = self.traced_device = device
        self.layers = None  # no layer is left out of a real model
        self.phases: list[dict[str, Any]] = []
        self.notes: list[Note] = []
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
        """The current phase has ended."""
        if self._phase is not None:
            self.phases.append({**self._phase, **read_allocator()})
            self._phase = None

    @property
    def phase(self) -> str:
        """The current phase; loading before the first mark."""
        return self._phase["phase"] if self._phase is not None else "load"

    @property
    def recorder(self) -> GpuRecorder:
        """Itself, because it also replaces the recording mode."""
        return self

    def __enter__(self) -> GpuRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        """Does nothing: nothing is open."""

    @contextmanager
    def watch(self, *models: nn.Module) -> Iterator[None]:
        yield

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)

    def register(self, tensor: torch.Tensor, **facts: Any) -> None:
        """Does nothing: CUDA's allocator has no roles."""

    def allocation_tick(self, tensor: torch.Tensor) -> int:
        return 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        yield

    @contextmanager
    def on_host(self) -> Iterator[None]:
        yield

    @contextmanager
    def in_module(self, name: str) -> Iterator[None]:
        yield

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def finish_streams(self) -> None:
        """Does nothing: each mark waits for the card."""

    def _reset(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


class RealScaler:
    """`torch.amp.GradScaler` itself; the trace has only its tensors."""

    def __init__(self, optimizer: TracedOptimizer, device: str) -> None:
        self.optimizer, self.scaler = optimizer, torch.amp.GradScaler(device)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        for optimizer in self.optimizer.optimizers:
            self.scaler.unscale_(optimizer)

    def update(self) -> None:
        self.scaler.update()


def read_allocator() -> dict[str, int]:
    """The bytes at the end of a phase, and the peak in it."""
    torch.cuda.synchronize()
    statistics = torch.cuda.memory_stats()
    return {
        "end_bytes": torch.cuda.memory_allocated(),
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "active_bytes": statistics["active_bytes.all.peak"],
        "reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def make_run(recipe: Recipe, device: str) -> Run:
    """The model, the optimizer and the loop of a real run. No step has been run yet."""
    recorder: Any = GpuRecorder(device)
    built = build_on_device(recipe, "cpu" if loads_on_host(recipe) else device)
    if recipe.parallel.engine == "none":
        built.module.to(device)
    rank_model = divide_for_real(recipe, recorder, built)
    optimizer = build_optimizer(recipe, built.module)
    if rank_model is not None and rank_model.with_optimizer is not None:
        rank_model = rank_model.with_optimizer(rank_model, optimizer)
    optimizer.around_step = nullcontext  # CUDA's own driver is called, not the trace's replacement
    run = Run(
        recipe,
        built,
        optimizer,
        recorder,
        offloading=lambda: nullcontext(nullcontext),
        repeat=False,
        rank_model=rank_model,
    )
    if run.scaler is not None and torch.device(device).type == "cuda":
        scaler: Any = RealScaler(optimizer, device)
        run.scaler = scaler
    return run


def run_recipe(recipe: Recipe, *, history: bool = False) -> tuple[list[Any], Any]:
    """The bytes after loading and the figures of each phase, by rank; and with `history`, the allocator's own snapshot
    of this rank."""
    with joined("cuda"):
        after_load, phases, snapshot = _run_rank(recipe, history=history)
        return gather((after_load, phases)), snapshot


def _run_rank(recipe: Recipe, *, history: bool) -> tuple[dict[str, int], list[dict[str, Any]], Any]:
    if history:
        torch.cuda.memory._record_memory_history(max_entries=1_000_000, stacks="python")
    run = make_run(recipe, "cuda")
    gc.collect()
    recorder: Any = run.recorder
    after_load = read_allocator()
    with garbage_on_demand():
        run.record()
        recorder.close()  # while the run still keeps its last batch
    return after_load, recorder.phases, torch.cuda.memory._snapshot() if history else None
