"""A tiny Llama, and the allocations of an optimizer's step on it, real on a CPU or on meta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from axmem_trace.config import read_recipe
from axmem_trace.ledger import NEVER, Allocation, Ledger
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.training.optimizers import TracedOptimizer, build_optimizer
from support.kernel_recording import recording_on
from support.tiny_models import write_tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 129,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "embed_tokens": (2048, 64),
    "q_proj": (64, 64),
    "k_proj": (32, 64),
    "v_proj": (32, 64),
    "o_proj": (64, 64),
    "gate_proj": (129, 64),
    "up_proj": (129, 64),
    "down_proj": (64, 129),
    "input_layernorm": (64,),
    "post_attention_layernorm": (64,),
    "norm": (64,),
    "lm_head": (2048, 64),
}
"""The shapes of all parameters. Embedding and head have more than 1e5 elements, k and v fewer than 4096, and q and o
exactly 4096. The MLP's 8256 elements are not divisible by 256."""
SCALAR_BYTES = 8
"""Counters and norms up to this size are not counted: on a CPU, those on the host cannot be distinguished from those on
the device."""


@dataclass(frozen=True)
class Steps:
    """Bytes that two steps allocated.

    `kept`: bytes alive after each step that were not alive before the first. `peaks`: the maximum of bytes alive during
    each step, minus those alive at its begin.
    """

    kept: tuple[int, int]
    peaks: tuple[int, int]


def make_llama(dtype: torch.dtype, device: str) -> nn.Module:
    """All parameters are trainable and have one dtype."""
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype)


def recipe_of(*, assume: tuple[str, ...] = (), **keys: Any) -> Recipe:
    """A full fine-tune with these keys. The tests use only its optimizer."""
    with TemporaryDirectory() as folder:
        config = {
            "sequence_len": 16,
            "micro_batch_size": 1,
            "learning_rate": 1e-4,
            "datasets": [{"path": "x", "type": "alpaca"}],
            **keys,
        }
        return read_recipe(
            {**config, "base_model": write_tiny_model("llama", Path(folder))}, hub="never", assumptions=assume
        )


def on_meta(module: nn.Module, recipe: Recipe | None = None, **keys: Any) -> tuple[TracedOptimizer, Steps]:
    """Runs two steps of the optimizer that the keys name, on meta."""
    recording = RecordingMode()
    before = set(module.parameters())
    with recording:
        optimizer = build_optimizer(recipe or recipe_of(**keys), module)
    assert set(module.parameters()) == before

    def step() -> None:
        optimizer.after_backward()
        optimizer.step()

    return optimizer, record_steps(recording, module, step)


def for_real(module: nn.Module, make: Callable[[nn.Module], Callable[[], Any]], *, second_step: int = 2) -> Steps:
    """Measures two steps on a CPU, the first one and a later one. `make` builds the library's optimizer and returns its
    `step`."""
    torch.manual_seed(0)
    recording = recording_on("cpu")
    with recording:
        step = make(module)
    return record_steps(recording, module, step, second_step=second_step)


def record_steps(
    recording: RecordingMode, module: nn.Module, step: Callable[[], Any], *, second_step: int = 2
) -> Steps:
    """Gradients exist before each step. If hooks run the optimizer, `backward` makes the gradients, and they are
    recorded."""
    spans, recorder = [], recording.recorder
    for _ in range(second_step):
        start = recorder.now
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        with recorder.paused():
            gradients = [torch.ones_like(parameter) * 0.01 for parameter in parameters]
        with recording:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                    parameter.backward(gradient)
                else:
                    parameter.grad = gradient
            del gradients, gradient
            step()
        module.zero_grad(set_to_none=True)
        recorder.mark("forward", 1)
        spans.append((start, recorder.now))
    spans, ledger = [spans[0], spans[-1]], recorder.make_ledger()
    return Steps(
        kept=tuple(alive_at(ledger, end) for _, end in spans),  # type: ignore[arg-type]
        peaks=tuple(peak_between(ledger, *span) for span in spans),  # type: ignore[arg-type]
    )


def _counts(allocation: Allocation) -> bool:
    return allocation.device == "gpu" and allocation.nbytes > SCALAR_BYTES


def alive_at(ledger: Ledger, tick: int) -> int:
    """Bytes, as requested, of all allocations that are alive at the tick."""
    return sum(each.nbytes for each in ledger.allocations if _counts(each) and each.alive(tick))


def peak_between(ledger: Ledger, start: int, end: int) -> int:
    """The maximum of bytes alive in (start, end], minus those alive at `start`."""
    moves: list[tuple[int, int]] = []
    for each in filter(_counts, ledger.allocations):
        if start < each.allocated_tick <= end:
            moves.append((each.allocated_tick, each.nbytes))
        if each.freed_tick != NEVER and start < each.freed_tick <= end:
            moves.append((each.freed_tick, -each.nbytes))
    return max(accumulate((delta for _, delta in sorted(moves)), initial=0))
