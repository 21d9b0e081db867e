"""FlashAttention-3 (package `flash_attn_interface`, or the Hub's build with attention sinks) and FlashAttention-4.

Sources: flash-attn 2.8.3, hopper/flash_attn_interface.py (`FlashAttnFunc`, `FlashAttnVarlenFunc`); flash-attn-4
4.0.0b36, flash_attn/cute/interface.py. Both keep query, key, value, output and an fp32 logsumexp. Neither pads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from axmem_trace.kernels.attention import hopper_sizes
from axmem_trace.kernels.attention.flash_sizes import Blocks
from axmem_trace.kernels.attention.fused import FusedKernel, Heads, run_fused
from axmem_trace.kernels.attention.hopper_sizes import BackwardTile
from axmem_trace.kernels.attention.refuse_call import note_refusal, refusal, refuse_flash_call
from axmem_trace.tracing.context import KernelContext

Window = tuple[int | None, int | None]


@dataclass(frozen=True, kw_only=True)
class Release:
    """The differences between FlashAttention-3 and -4."""

    name: str
    operator: str
    make_tile: Callable[..., BackwardTile]
    oldest: tuple[int, int]
    newest: tuple[int, int]
    semaphores: bool


FLASH3 = Release(
    name="FlashAttention-3",
    operator="flash_attn_3",
    make_tile=hopper_sizes.flash3_tile,
    oldest=(8, 0),
    newest=(9, 9),
    semaphores=True,
)
FLASH4 = Release(
    name="FlashAttention-4",
    operator="flash_attn_4",
    make_tile=hopper_sizes.flash4_tile,
    oldest=(9, 0),
    newest=(12, 9),
    semaphores=False,
)


def run_fixed(
    release: Release,
    context: KernelContext,
    heads: Heads,
    *,
    causal: bool,
    window: Window = (-1, -1),
    sink: torch.Tensor | None = None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The fixed-length kernel. Heads are (B, S, H, D)."""
    _refuse_call(release, context, heads, softcap=softcap, sink=sink)
    tile = _tile(release, context, heads, causal, window, softcap)
    kernel = FusedKernel(
        name=f"{release.operator}_func",
        make_outputs=partial(_outputs, packed=False),
        forward_scratch=partial(_forward_scratch, release=release, samples=0),
        backward_scratch=partial(_fixed_scratch, tile=tile, semaphores=release.semaphores),
        dispatched=release is FLASH3,
        window_left=_left(window),
    )
    return run_fused(context, kernel, heads, sink=sink)


def run_varlen(
    release: Release,
    context: KernelContext,
    heads: Heads,
    bounds: Sequence[torch.Tensor],
    longest: Any,
    *,
    causal: bool,
    window: Window = (-1, -1),
    sink: torch.Tensor | None = None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The kernel for rows of samples without padding. Heads are (tokens, H, D), the bounds (samples + 1,)."""
    _refuse_call(release, context, heads, softcap=softcap, sink=sink)
    tile = _tile(release, context, heads, causal, window, softcap)
    samples = bounds[0].numel() - 1
    longest = _number(context, longest, heads[0].shape[0]) if release.semaphores else 0
    kernel = FusedKernel(
        name=f"{release.operator}_varlen_func",
        make_outputs=partial(_outputs, packed=True),
        forward_scratch=partial(_forward_scratch, release=release, samples=samples),
        backward_scratch=partial(_varlen_scratch, tile=tile, samples=samples, longest=longest),
        dispatched=release is FLASH3,
        window_left=_left(window),
    )
    return run_fused(context, kernel, heads, also_kept=bounds, sink=sink)


def _refuse_call(
    release: Release, context: KernelContext, heads: Heads, *, softcap: float, sink: torch.Tensor | None
) -> None:
    """Refuses calls that this release does not support, in addition to `refuse_flash_call`.

    Source: hopper/flash_api.cpp, `mha_fwd` (value heads of another size); flash_attn/cute/interface.py,
    `_validate_head_dims` and the asserts of `_flash_attn_bwd`.
    """
    refuse_flash_call(context, heads, name=release.name, oldest=release.oldest, newest=release.newest, multiple=8)
    sizes, major = (heads[0].shape[-1], heads[2].shape[-1]), context.compute_capability[0]
    if release is FLASH3 and sizes[0] != sizes[1]:
        served = (128 < sizes[0] <= 192 and 96 < sizes[1] <= 128) or (sizes[0] <= 64 and sizes[1] <= 512)
        if major != 9 or not served:
            raise refusal(
                f"{release.name} does not support head size {sizes[0]} with value head size {sizes[1]}",
                context.attention,
            )
    if release is FLASH4 and major in (10, 11) and max(sizes) > 128 and sizes not in ((192, 128), (256, 256)):
        note_refusal(
            context,
            f"{release.name} on Blackwell supports head sizes of at most 128, 192 with values of 128, or 256; this model's "
            f"are {sizes[0]} and {sizes[1]}",
        )
    if release is FLASH4 and major in (10, 11) and sizes == (256, 256) and softcap:
        note_refusal(context, f"{release.name} has no backward for head size 256 with a soft cap on Blackwell")
    if release is FLASH4 and major == 12 and sink is not None:
        note_refusal(context, f"{release.name} has no backward for attention sinks on this card")


def _tile(
    release: Release, context: KernelContext, heads: Heads, causal: bool, window: Window, softcap: float
) -> BackwardTile:
    local = window[0] not in (None, -1)
    return release.make_tile(
        heads[0].shape[-1],
        heads[2].shape[-1],
        context.compute_capability,
        causal=causal,
        local=local,
        softcap=bool(softcap),
    )


def _left(window: Window) -> int:
    return -1 if window[0] is None else window[0]


def _number(context: KernelContext, value: Any, otherwise: int) -> int:
    """A length as a number; transformers may pass it as a tensor. `otherwise` if its value is not known."""
    if isinstance(value, torch.Tensor):
        known = context.recorder.known(value)
        return otherwise if known is None else int(known)
    return otherwise if value is None else int(value)


def _outputs(heads: Heads, *, packed: bool) -> tuple[torch.Tensor, ...]:
    query, _, value = heads
    shape = (query.shape[1], query.shape[0]) if packed else (query.shape[0], query.shape[2], query.shape[1])
    lse = torch.empty(shape, dtype=torch.float32, device=query.device)
    return query.new_empty((*query.shape[:-1], value.shape[-1])), lse


def _forward_scratch(heads: Heads, *, release: Release, samples: int) -> Blocks:
    """FlashAttention-3's tile counter, and the number of splits of each sample (`tile_count_semaphore`, int32)."""
    return (4 * (1 + samples),) if release is FLASH3 else ()


def _fixed_scratch(heads: Heads, *, tile: BackwardTile, semaphores: bool) -> Blocks:
    query, key, _ = heads
    return hopper_sizes.backward_scratch(
        tile,
        batch=query.shape[0],
        heads=query.shape[2],
        kv_heads=key.shape[2],
        queries=query.shape[1],
        keys=key.shape[1],
        semaphores=semaphores,
    )


def _varlen_scratch(heads: Heads, *, tile: BackwardTile, samples: int, longest: int) -> Blocks:
    query, key, _ = heads
    return hopper_sizes.varlen_backward_scratch(
        tile,
        samples=samples,
        heads=query.shape[1],
        kv_heads=key.shape[1],
        total_queries=query.shape[0],
        total_keys=key.shape[0],
        longest=longest,
    )
