"""Reports calls that attention kernels refuse."""

from __future__ import annotations

from axmem_trace.errors import ConfigError
from axmem_trace.kernels.attention.fused import Heads
from axmem_trace.kernels.card import HALF
from axmem_trace.notes import RefusalNote
from axmem_trace.tracing.context import KernelContext

_GENERATIONS = {8: "Ampere", 9: "Hopper", 12: "Blackwell"}
_REMEDY = "use `attn_implementation: sdpa`, which falls back to another kernel, or `eager`"


def refuse_flash_call(
    context: KernelContext,
    heads: Heads,
    *,
    name: str,
    oldest: tuple[int, int] = (8, 0),
    newest: tuple[int, int] = (99, 0),
    multiple: int = 1,
    max_head_dim: int = 256,
) -> None:
    """The checks of every FlashAttention release at the beginning of its forward.

    Source: flash-attn 2.8.3, csrc/flash_attn/flash_api.cpp, `mha_fwd` and `mha_varlen_fwd` (`TORCH_CHECK`s).

    A call that the kernel does not support is reported as a refusal. The figures are computed as if it did.

    Raises:
        ConfigError: the number of query heads is not a multiple of the number of key heads.
    """
    query, key, value = heads
    head_dim, kernel = query.shape[-1], context.attention
    if not oldest <= context.compute_capability <= newest:
        generations = (
            f"{_GENERATIONS[oldest[0]]} to {_GENERATIONS[newest[0]]}"
            if newest[0] in _GENERATIONS
            else (f"{_GENERATIONS[oldest[0]]} or newer")
        )
        major, minor = context.compute_capability
        note_refusal(
            context, f"{name} needs a GPU of generation {generations}; this one has compute capability {major}.{minor}"
        )
    if query.dtype not in HALF or not query.dtype == key.dtype == value.dtype:
        dtypes = ", ".join(str(each.dtype).removeprefix("torch.") for each in heads)
        note_refusal(
            context,
            f"{name} supports only fp16 and bf16; query, key and value are {dtypes}",
            remedy="set `bf16: auto`, or use `attn_implementation: sdpa`",
        )
    if head_dim > max_head_dim:
        note_refusal(context, f"{name} supports head sizes of at most {max_head_dim}; this model's is {head_dim}")
    if head_dim % multiple or value.shape[-1] % multiple:
        note_refusal(
            context, f"{name} supports head sizes that are multiples of {multiple}; this model's is {head_dim}"
        )
    if query.shape[-2] % key.shape[-2]:
        raise refusal(f"{name} needs a multiple of {key.shape[-2]} query heads; there are {query.shape[-2]}", kernel)


def note_refusal(context: KernelContext, problem: str, remedy: str = _REMEDY) -> None:
    """Adds the reason why the run fails at the call. The call is recorded as if the kernel supported it."""
    text = f"the run fails: {problem} (the figures are as if it ran)"
    context.note(RefusalNote(key="attn_implementation", text=text, remedy=remedy))


def refusal(problem: str, kernel: str, remedy: str = _REMEDY) -> ConfigError:
    """The error for a call that the kernel in `attn_implementation` would refuse."""
    return ConfigError(problem, key="attn_implementation", value=kernel, remedy=remedy)
