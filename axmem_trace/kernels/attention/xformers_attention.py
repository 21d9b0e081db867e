"""xformers' memory-efficient attention, as axolotl calls it.

Source: axolotl 0.19, monkeypatch/attention/xformers.py; xformers 0.0.35 (the release for torch 2.10 and newer),
xformers/ops/fmha/__init__.py (`_fMHA`), dispatch.py, flash.py, cutlass.py.

That wheel does not contain FlashAttention. FlashAttention-2 comes from flash-attn, or from torch, which allocates the same.
FlashAttention-3 comes from a package that axolotl does not install. For calls that the flash kernel refuses, xformers runs
torch's CUTLASS kernel. `_fMHA` keeps query, key, value, output and logsumexp, and the RNG state only with dropout. It also
returns the logsumexp, so autograd allocates zeros for its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.kernels.attention import efficient_sizes, flash2
from axmem_trace.kernels.attention.flash_sizes import Blocks, round_up
from axmem_trace.kernels.attention.fused import FusedKernel, Heads, run_fused
from axmem_trace.kernels.attention.refuse_call import note_refusal, refusal
from axmem_trace.kernels.attention.sources import note_lost_sinks, note_source
from axmem_trace.kernels.card import HALF
from axmem_trace.notes import RefusalNote
from axmem_trace.tracing.context import KernelContext

_MAX_FLASH_HEAD_DIM = 256
_OLDEST_FLASH, _NEWEST_CUTLASS = (8, 0), (9, 0)
"""`CUDA_MINIMUM_COMPUTE_CAPABILITY` of flash.py, `CUDA_MAXIMUM_COMPUTE_CAPABILITY` of cutlass.py."""
_REMEDY = "use `attn_implementation: sdpa`"
_PADDED = RefusalNote(
    key="attn_implementation",
    text="the run fails: for a padded batch, axolotl's xformers attention calls `_upad_input` of transformers 5 without its "
    "last argument (the figures are as if the batch was unpadded)",
    remedy="set `sample_packing: true`, or `attn_implementation: sdpa`",
)
_LLAMA = RefusalNote(
    key="attn_implementation",
    text="the run fails: without sample packing axolotl replaces Llama's attention by its own "
    "(llama_attn_hijack_xformers.py), which reads `num_heads`; transformers 5 does not have it (the figures are as if it "
    "called xformers as for other models)",
    remedy="set `sample_packing: true`, or `attn_implementation: sdpa`",
)


def make_xformers(context: KernelContext) -> Callable[..., tuple[torch.Tensor, None]]:
    """The attention function. Input heads are (B, H, S, D); the output is (B, S, H, D)."""

    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        note_source(context, "xformers")
        note_lost_sinks(context, kwargs.get("s_aux"))
        batch, groups = query.shape[0], query.shape[1] // key.shape[1]
        in_one_row = sliding_window is not None and sliding_window < query.shape[2] and module.training
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        if position_ids is not None and _is_packed(position_ids):
            out = _run_packed(context, (query, key, value), groups, position_ids)
            return out.view(batch, -1, out.shape[-2], out.shape[-1]), None
        if type(module).__name__ == "LlamaAttention":
            context.note(_LLAMA)
        if attention_mask is not None:
            return _run_unpadded(context, (query, key, value), groups, attention_mask), None
        _refuse_value(query, value)
        heads = query, _repeat_by_reshape(key, groups), _repeat_by_reshape(value, groups)
        if in_one_row:  # with a window, axolotl joins all rows into one
            query, key, value = (each.reshape(1, -1, *each.shape[-2:]) for each in heads)
            heads = query, key, value
        out = _run_kernel(context, heads, ())
        return out.view(batch, -1, out.shape[-2], out.shape[-1]), None

    return forward


def _refuse_value(query: torch.Tensor, value: torch.Tensor) -> None:
    if query.shape[-1] != value.shape[-1]:
        raise refusal(
            f"axolotl's xformers attention needs values with the query's head size, {query.shape[-1]}; this model's value "
            f"head size is {value.shape[-1]}",
            "xformers",
            remedy=_REMEDY,
        )


def _is_packed(positions: torch.Tensor) -> bool:
    return positions.shape[-1] != 1 and not bool((torch.diff(positions, dim=-1) >= 0).all())


def _repeat_by_reshape(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    batch, tokens, num_heads, head_dim = tensor.shape
    grouped = tensor.view(batch, tokens, num_heads, 1, head_dim).expand(batch, tokens, num_heads, groups, head_dim)
    return grouped.reshape(batch, tokens, num_heads * groups, head_dim)


def _run_packed(context: KernelContext, heads: Heads, groups: int, positions: torch.Tensor) -> torch.Tensor:
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    query, key, value = heads
    (bounds, _), _ = prepare_fa_kwargs_from_position_ids(positions)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=2), value.repeat_interleave(groups, dim=2)
    flat = tuple(each.reshape(-1, each.shape[-2], each.shape[-1]) for each in (query, key, value))
    return _run_kernel(context, (flat[0], flat[1], flat[2]), (bounds, bounds.clone()))


def _run_unpadded(context: KernelContext, heads: Heads, groups: int, mask: torch.Tensor) -> torch.Tensor:
    from transformers import modeling_flash_attention_utils as flash_utils

    context.note(_PADDED)
    batch, tokens = heads[0].shape[:2]
    query, key, value, indices, bounds, _ = flash_utils._upad_input(*heads, mask, tokens, flash_utils._unpad_input)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = _run_kernel(context, (query, key, value), bounds)
    padded: torch.Tensor = flash_utils._pad_input(out, indices, batch, tokens)
    return padded


def _run_kernel(context: KernelContext, heads: Heads, bounds: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The operator that xformers dispatches to; with bounds, heads are (tokens, H, D)."""
    query, _, value = heads
    flash = query.shape[-1] == value.shape[-1] <= _MAX_FLASH_HEAD_DIM and query.dtype in HALF
    if not flash or context.compute_capability < _OLDEST_FLASH:
        return _run_cutlass(context, heads, bounds)
    if bounds:
        return flash2.run_flash2_varlen(
            context, heads, *bounds, name="xformers", pads=False, keeps_rng=False, returns_lse=True
        )
    return flash2.run_flash2(context, heads, name="xformers", pads=False, keeps_rng=False, returns_lse=True)


def _run_cutlass(context: KernelContext, heads: Heads, bounds: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """`xformers/ops/fmha/cutlass.py`: torch's own memory-efficient operator. With bounds, the logsumexp and the workspace
    have one row for each sample, and each row is as long as the longest sample."""
    capability = context.compute_capability
    if capability > _NEWEST_CUTLASS:
        note_refusal(
            context,
            f"xformers has no kernel for head size {heads[0].shape[-1]} on a GPU of compute capability "
            f"{capability[0]}.{capability[1]}",
            _REMEDY,
        )
    samples, longest = _samples(context, bounds, heads[0].shape[0])
    tokens = heads[0].numel() // (heads[0].shape[-2] * heads[0].shape[-1])

    def sizes(query: torch.Tensor) -> dict[str, Any]:
        batch, queries = (samples, longest) if bounds else (query.shape[0], query.shape[1])
        return {"batch": batch, "heads": query.shape[-2], "queries": queries, "half": query.dtype in HALF}

    def outputs(each: Heads) -> tuple[torch.Tensor, ...]:
        query, _, value = each
        size = sizes(query)
        shape = (size["batch"], size["heads"], round_up(size["queries"], 32))
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        return out, torch.empty(shape, dtype=torch.float32, device=query.device)

    def forward_scratch(each: Heads) -> Blocks:
        query, _, value = each
        size = {**sizes(query), "batch": 1, "queries": tokens}
        return efficient_sizes.efficient_forward(**size, head_dim=query.shape[-1], value_dim=value.shape[-1])

    def backward_scratch(each: Heads) -> Blocks:
        query, _, value = each
        size = sizes(query)
        blocks = efficient_sizes.efficient_backward(
            **size,
            keys=size["queries"],
            head_dim=query.shape[-1],
            value_dim=value.shape[-1],
            capability=capability,
            tokens=tokens,
        )
        return (*blocks, 4 * size["batch"] * size["heads"] * round_up(size["queries"], 32))  # zeros for the logsumexp

    kernel = FusedKernel(
        name="xformers.cutlass",
        make_outputs=outputs,
        forward_scratch=forward_scratch,
        backward_scratch=backward_scratch,
    )
    return run_fused(context, kernel, heads, also_kept=bounds)


def _samples(context: KernelContext, bounds: tuple[torch.Tensor, ...], tokens: int) -> tuple[int, int]:
    """The number of samples and the length of the longest. If they are not known: one sample with all tokens."""
    known = context.recorder.known(bounds[0]) if bounds else None
    return (1, tokens) if known is None else (known.numel() - 1, int(known.diff().max()))
