"""`flex_attention`, compiled as on a GPU, and its block mask.

Source: torch 2.13, torch/_inductor/kernel/flex/flex_attention.py (lowerings of `flex_attention` and
`flex_attention_backward`), torch/nn/attention/flex_attention.py (`BlockMask`, `create_block_mask`,
`_finalize_outputs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.kernels.attention.fused import FusedKernel, Heads, run_fused
from axmem_trace.kernels.attention.refuse_call import note_refusal
from axmem_trace.kernels.attention.sources import note_source
from axmem_trace.kernels.site import Site
from axmem_trace.tracing.context import KernelContext

_FLOAT = 4
_LEAST_HEAD_DIM = 16


def install_flex(site: Site) -> None:
    """Replace transformers' flex attention by a function with the memory of the compiled kernel on a GPU."""
    from transformers import masking_utils
    from transformers.integrations import flex_attention as integration

    site.replace_attribute(integration, "compile_friendly_flex_attention", make_flex(site.context))
    site.replace_attribute(integration, "create_block_mask", make_block_mask)
    site.replace_attribute(masking_utils, "create_block_mask", make_block_mask)


def make_flex(context: KernelContext) -> Callable[..., Any]:
    """Replaces `compile_friendly_flex_attention`; heads are (B, H, S, D)."""

    def flex_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        training: bool = False,
        *,
        block_mask: Any = None,
        return_aux: Any = None,
        return_lse: bool = False,
        **kwargs: Any,
    ) -> Any:
        if min(query.shape[-1], value.shape[-1]) < _LEAST_HEAD_DIM:
            problem = (
                f"flex attention needs a head size of at least {_LEAST_HEAD_DIM}; this model's is {query.shape[-1]}"
            )
            note_refusal(context, problem, "use `attn_implementation: sdpa`")
        note_source(context, "flex_attention")
        out = run_fused(context, _KERNEL, (query, key, value), also_kept=_tensors_of(block_mask))
        lse = torch.empty(
            query.shape[:3], dtype=torch.float32, device=query.device
        )  # in base e; the tensor that is kept for backward is a separate one, in base 2
        if return_aux is not None:
            from torch.nn.attention.flex_attention import AuxOutput

            return out, AuxOutput(lse=lse)
        return (out, lse) if return_lse else out

    return flex_attention


def make_block_mask(
    mask_mod: Callable[..., Any],
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: Any = "cuda",
    BLOCK_SIZE: int | tuple[int, int] = 128,
    **kwargs: Any,
) -> Any:
    """The compiled `create_block_mask`. Its result has eight int32 tensors: counts and indices of the partly and of the
    fully visible blocks, by queries and by keys. The full mask, S x S, is never stored: inductor fuses it."""
    from torch.nn.attention.flex_attention import BlockMask

    sizes = BLOCK_SIZE if isinstance(BLOCK_SIZE, tuple) else (BLOCK_SIZE, BLOCK_SIZE)
    rows, columns = -(-Q_LEN // sizes[0]), -(-KV_LEN // sizes[1])
    batch = (B or 1, H or 1)

    def make(*shape: int) -> torch.Tensor:
        return torch.empty((*batch, *shape), dtype=torch.int32, device=device)

    return BlockMask(
        seq_lengths=(Q_LEN, KV_LEN),
        kv_num_blocks=make(rows),
        kv_indices=make(rows, columns),
        full_kv_num_blocks=make(rows),
        full_kv_indices=make(rows, columns),
        q_num_blocks=make(columns),
        q_indices=make(columns, rows),
        full_q_num_blocks=make(columns),
        full_q_indices=make(columns, rows),
        BLOCK_SIZE=sizes,
        mask_mod=mask_mod,
    )


def _tensors_of(block_mask: Any) -> tuple[torch.Tensor, ...]:
    if block_mask is None:
        return ()
    names = tuple(
        """
        kv_num_blocks kv_indices full_kv_num_blocks full_kv_indices q_num_blocks q_indices full_q_num_blocks
        full_q_indices
        """.split()
    )
    found = (getattr(block_mask, name, None) for name in names)
    return tuple(tensor for tensor in found if tensor is not None)


def _outputs(heads: Heads) -> tuple[torch.Tensor, ...]:
    """The output in the query's layout, and the logsumexp (B, H, S) in base 2, which is kept for backward."""
    query, _, value = heads
    out = torch.empty_like(query)
    if value.shape[-1] != query.shape[-1]:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)


def _row_bytes(heads: Heads) -> int:
    batch, num_heads, queries, _ = heads[0].shape
    return batch * num_heads * queries * _FLOAT


def _forward_scratch(heads: Heads) -> tuple[int, ...]:
    """`max_scores`, as large as the logsumexp; allocated even if the caller does not need it."""
    return (_row_bytes(heads),)


def _backward_scratch(heads: Heads) -> tuple[int, ...]:
    """`delta`, the gradient of the returned logsumexp (zeros if the loss does not use it), and that gradient in base 2.
    Gradients of grouped keys are summed in the kernel."""
    return (_row_bytes(heads),) * 3


_KERNEL = FusedKernel(
    name="flex_attention", make_outputs=_outputs, forward_scratch=_forward_scratch, backward_scratch=_backward_scratch
)
