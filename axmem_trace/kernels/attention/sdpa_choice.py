"""The choice of the kernel by `scaled_dot_product_attention` on a CUDA card.

Source: torch 2.11 to 2.13, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (`select_sdp_backend`,
`priority_order`, `check_prefer_cudnn_attention`, `can_use_*`) and transformers/sdp_utils_cpp.h. Each `refused_by_*` function
returns the constraint that fails, or an empty text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from axmem_trace.kernels.card import HALF

Backend = Literal["flash", "efficient", "cudnn", "math"]
Capability = tuple[int, int]

_OLDEST_FLASH, _OLDEST_EFFICIENT, _NEWEST = (8, 0), (5, 0), (12, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SdpaCall:
    """The properties of a call that decide. Sizes are (B, H, S, D); `mask` is the mask's size, `()` if there is none."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    mask: tuple[int, ...] = ()
    mask_requires_grad: bool = False
    dropout: float = 0.0
    is_causal: bool = False
    enable_gqa: bool = False
    requires_grad: bool = False
    contiguous_heads: bool = True
    """The last dimension of query, key and value has stride 1."""
    contiguous_mask: bool = True
    offsets: tuple[int, ...] = (0, 0, 0)
    """Offsets of query, key and value in their storages, in elements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The kernel, and the reason why each kernel with a higher priority was refused."""

    backend: Backend
    refused: dict[Backend, str] = field(default_factory=dict)


def priority_order(capability: Capability) -> tuple[Backend, ...]:
    """cuDNN comes first on the data-centre Hopper and Blackwell cards (9.0, 10.0 and 10.3) and last elsewhere.

    `check_prefer_cudnn_attention`: cuDNN newer than 9.15.0 (torch 2.11 comes with 9.19, 2.12 and 2.13 with 9.20) and
    `TORCH_CUDNN_SDPA_DEPRIORITIZED` not set.
    """
    if capability[0] in (9, 10) and capability[1] in (0, 3):
        return "cudnn", "flash", "efficient", "math"
    return "flash", "efficient", "math", "cudnn"


def choose_backend(call: SdpaCall, capability: Capability) -> Choice:
    """The first kernel in the order that supports the call; `math` supports every call."""
    refused: dict[Backend, str] = {}
    for backend in priority_order(capability):
        reason = _REFUSALS[backend](call, capability)
        if not reason:
            return Choice(backend=backend, refused=refused)
        refused[backend] = reason
    return Choice(backend="math", refused=refused)


def refused_by_flash(call: SdpaCall, capability: Capability) -> str:
    """`can_use_flash_attention`."""
    head_dims = {call.query[-1], call.key[-1], call.value[-1]}
    return (
        ("it is disabled" if not torch.backends.cuda.flash_sdp_enabled() else "")
        or _refused_shapes(call)
        or ("there is a mask" if call.mask else "")
        or ("query, key and value heads differ in size" if len(head_dims) > 1 else "")
        or (f"the head size {call.query[-1]} is over 256" if call.query[-1] > 256 else "")
        or _refused_card(capability, _OLDEST_FLASH)
        or _refused_backward(call, capability)
        or ("it is causal, and queries and keys differ in number" if _is_causal_rectangle(call) else "")
        or _refused_dtype(call, HALF)
        or _refused_heads(call, supports_gqa=True)
        or _refused_strides(call)
    )


def refused_by_efficient(call: SdpaCall, capability: Capability) -> str:
    """`can_use_mem_efficient_attention`."""
    dtypes = (*HALF, torch.float32) if capability >= (8, 0) else (torch.float16, torch.float32)
    alignment = 8 if call.dtypes[0] in HALF else 4 if capability >= (8, 0) else 1  # `minimum_gemm_alignment`
    odd = call.query[-1] % alignment or call.value[-1] % alignment
    return (
        ("it is disabled" if not torch.backends.cuda.mem_efficient_sdp_enabled() else "")
        or _refused_card(capability, _OLDEST_EFFICIENT)
        or _refused_shapes(call)
        or (f"the head size is not a multiple of {alignment}" if odd else "")
        or _refused_offsets(call, alignment, capability)
        or _refused_strides(call)
        or _refused_heads(call, supports_gqa=False)
        or _refused_dtype(call, dtypes)
    )


def refused_by_cudnn(call: SdpaCall, capability: Capability) -> str:
    """`can_use_cudnn_attention`, for cuDNN 9.19 and 9.20. `check_cudnn_dropout` (only multiples of 1/16): torch 2.13."""
    limit = 128
    if capability == (9, 0):
        limit = 256
    elif capability[0] == 10 and (call.query[-1], call.value[-1]) == (192, 128):
        limit = 192
    head_dims = call.query[-1], call.value[-1]
    deterministic = torch.are_deterministic_algorithms_enabled()
    return (
        ("it is disabled" if not torch.backends.cuda.cudnn_sdp_enabled() else "")
        or _refused_shapes(call)
        or (f"a head size is over {limit}" if max(head_dims) > limit else "")
        or ("a head size is not a multiple of 8" if head_dims[0] % 8 or head_dims[1] % 8 else "")
        or ("there is only one key" if call.key[-2] == 1 else "")
        or ("there is only one query, with dropout" if call.query[-2] == 1 and call.dropout else "")
        or ("the dropout is not a multiple of 1/16" if call.dropout * 16 % 1 else "")
        or ("the batch or the heads are over 65535" if max(call.query[:2]) > 65535 else "")
        or ("deterministic algorithms are requested" if deterministic else "")
        or _refused_dtype(call, HALF)
        or ("the mask trains" if call.mask_requires_grad else "")
        or ("the mask's shape is not broadcastable" if not _is_plain_mask(call) else "")
        or _refused_card(capability, _OLDEST_FLASH)
        or _refused_strides(call)
        or _refused_heads(call, supports_gqa=True, same_kv_heads=False)
    )


def _refused_nowhere(call: SdpaCall, capability: Capability) -> str:
    return ""


_REFUSALS = {
    "flash": refused_by_flash,
    "efficient": refused_by_efficient,
    "cudnn": refused_by_cudnn,
    "math": _refused_nowhere,
}


def _refused_shapes(call: SdpaCall) -> str:
    """`check_tensor_shapes`, `check_nonzero_sequence_lengths_dense`."""
    if not len(call.query) == len(call.key) == len(call.value) == 4:
        return "query, key and value do not all have four dimensions"
    return "there is no query or no key" if not (call.query[-2] and call.key[-2]) else ""


def _refused_card(capability: Capability, oldest: Capability) -> str:
    """`check_flash_attention_hardware_support`, `check_mem_efficient_hardware_support`."""
    if oldest <= capability <= _NEWEST:
        return ""
    return f"the card's compute capability {capability[0]}.{capability[1]} is not supported"


def _refused_dtype(call: SdpaCall, accepted: tuple[torch.dtype, ...]) -> str:
    """`check_tensor_dtype`."""
    if len(set(call.dtypes)) > 1:
        return "query, key and value differ in dtype"
    return "" if call.dtypes[0] in accepted else f"the dtype is {call.dtypes[0]}"


def _refused_heads(call: SdpaCall, *, supports_gqa: bool, same_kv_heads: bool = True) -> str:
    """`check_batch_size_and_num_heads_dense`."""
    if not call.query[0] == call.key[0] == call.value[0]:
        return "query, key and value differ in batch size"
    heads, kv_heads, value_heads = call.query[1], call.key[1], call.value[1]
    if call.enable_gqa and supports_gqa:
        if same_kv_heads and kv_heads != value_heads:
            return "key and value differ in number of heads"
        odd = heads % kv_heads or heads % value_heads
        return "the number of query heads is not a multiple of the key heads" if odd else ""
    return "" if heads == kv_heads == value_heads else "query, key and value differ in number of heads"


def _refused_strides(call: SdpaCall) -> str:
    """`check_last_dim_stride_equals_1_dense`."""
    if not call.contiguous_heads:
        return "the last dimension is not contiguous"
    return "" if not call.mask or call.contiguous_mask else "the mask's last dimension is not contiguous"


def _refused_offsets(call: SdpaCall, alignment: int, capability: Capability) -> str:
    """`check_data_ptr_alignment_mem_efficient` (torch 2.13): views that do not begin at an aligned address."""
    misaligned = capability >= (8, 0) and any(offset % alignment for offset in call.offsets)
    return f"query, key or value does not begin at a multiple of {alignment} elements" if misaligned else ""


def _refused_backward(call: SdpaCall, capability: Capability) -> str:
    """`check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`: cards with less shared memory."""
    small = (8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)
    head_dim = call.query[-1]
    if call.requires_grad and small and (192 < head_dim <= 224 or (head_dim > 224 and call.dropout > 0)):
        return f"cards of capability {capability[0]}.{capability[1]} have no backward for head size {head_dim}"
    return ""


def _is_causal_rectangle(call: SdpaCall) -> bool:
    """`check_flash_causal_non_square_seqlens`."""
    return call.is_causal and call.query[-2] != call.key[-2]


def _is_plain_mask(call: SdpaCall) -> bool:
    """`check_attn_mask_shape`."""
    if not call.mask:
        return True
    wanted = (call.query[0], call.query[1], call.query[2], call.key[2])
    if len(call.mask) not in (2, 4):
        return False
    return all(size in (1, full) for size, full in zip(reversed(call.mask), reversed(wanted), strict=False))
