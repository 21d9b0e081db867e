"""`torch.nn.functional.grouped_mm` as on CUDA, in every dtype that CUDA supports."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.card import sms_of
from axmem_trace.recipe.watched_gpu import ask
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()
_ALIGNMENT_BYTES = 16
_BYTES_PER_PRODUCT = 60
"""Three addresses, the three sizes of the matmul, and the strides of three matrices: 24 + 12 + 24."""
_WORKSPACE_PER_SM = {9: 512, 10: 5888}
"""Generation -> bytes of CUTLASS's workspace for each multiprocessor.

Hopper: four descriptors of 128 bytes, for A, B, and the output of two warp groups (CUTLASS 4.2
sm90_mma_array_tma_gmma_ss_warpspecialized.hpp, sm90_epilogue_array_tma_warpspecialized.hpp, `get_workspace_size`).
Blackwell: 5,376, or 5,888 with tiles for two multiprocessors. The larger one is used for all."""


@RULES.dispatch(aten._grouped_mm.default)
def grouped_mm(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """All implementations allocate only the output, except temporary workspaces.

    Source: aten/src/ATen/native/GroupedMMUtils.h (part of torch/include): `_grouped_mm_validate_inputs` accepts bf16, fp16
    and fp32 (the meta kernel only bf16), `create_grouped_gemm_output_tensor` pads rows to 16 bytes. CUDA's
    `_grouped_mm_cuda` (cuda/GroupedBlas.cpp) runs CUTLASS for bf16 on Hopper and Blackwell. Otherwise it runs
    `_grouped_mm_fallback`: one `mm_out` for each expert, into a slice of the output.
    """
    a, b = args[0], args[1]
    offsets = args[2] if len(args) > 2 else kwargs.get("offs")
    out_dtype = (args[4] if len(args) > 4 else kwargs.get("out_dtype")) or a.dtype
    _refuse_inputs(a, b, offsets)
    return _empty_output(a, b, offsets, out_dtype)


@RULES.workspace(aten._grouped_mm.default)
def grouped_mm_workspace(
    context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> list[int]:
    """The arguments of all matmuls, and CUTLASS's workspace. CUTLASS runs for bf16 on Hopper and on Blackwell's data-centre
    cards.

    Source: torch 2.14.1's CUDA build, run by `scripts/cuda_without_gpu.py`. The arguments have 480, 3,840 and 15,360 bytes
    with 8, 64 and 256 experts. The workspace has 67,584 bytes on 132 multiprocessors of Hopper, 58,368 on 114, and
    795,648 or 871,424 on 148 of Blackwell. There is none on (8, 0) and (12, 0), and none in fp32.
    """
    a = args[0]
    per_sm, sms = ask(context.compute_capability, _workspace_of_card)
    if a.dtype != torch.bfloat16 or not per_sm:
        return []
    offsets = args[2] if len(args) > 2 else kwargs.get("offs")
    products = a.shape[0] if offsets is None else offsets.shape[0]
    return [_BYTES_PER_PRODUCT * products, per_sm * (context.num_sms or sms)]


def _workspace_of_card(capability: tuple[int, int]) -> tuple[int, int]:
    """CUTLASS's bytes for each multiprocessor, and the number of multiprocessors. (0, 0): another kernel runs."""
    per_sm = _WORKSPACE_PER_SM.get(capability[0], 0)
    return per_sm, sms_of(capability) if per_sm else 0


def _refuse_inputs(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor | None) -> None:
    """`_grouped_mm_validate_inputs`: the same checks as on a GPU."""
    for matrix in (a, b):
        if matrix.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise RuntimeError(f"grouped_mm supports fp32, bf16 and fp16 matrices, not {matrix.dtype}")
        _refuse_strides(matrix)
    if not (a.ndim == b.ndim == 2) and a.shape[-1] != b.shape[-2]:
        raise RuntimeError("contraction dimension of mat_a and mat_b must match")
    if (offsets is not None) != (a.ndim == 2 or b.ndim == 2):
        raise RuntimeError("grouped_mm needs offsets if and only if a matrix is 2-D")


def _refuse_strides(matrix: torch.Tensor) -> None:
    """`check_valid_strides_and_return_transposed`."""
    (rows, columns), (by_row, by_column) = matrix.shape[-2:], matrix.stride()[-2:]
    if by_row == 1 and by_column >= max(1, rows):
        leading = by_column
    elif by_column == 1 and by_row >= max(1, columns):
        leading = by_row
    else:
        raise RuntimeError(f"grouped_mm refuses strides {matrix.stride()} for sizes {tuple(matrix.shape)}")
    if leading * matrix.element_size() % _ALIGNMENT_BYTES:
        raise RuntimeError("grouped_mm needs strides that are a multiple of 16 bytes")


def _empty_output(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """`create_grouped_gemm_output_tensor`."""
    if a.ndim == 2 and b.ndim == 2:
        assert offsets is not None
        shape: tuple[int, ...] = (offsets.shape[0], a.shape[0], b.shape[1])
    elif a.ndim == 2:
        shape = (a.shape[0], b.shape[-1])
    elif b.ndim == 2:
        shape = (a.shape[1], b.shape[1])
    else:
        shape = (a.shape[0], a.shape[1], b.shape[-1])
    per_unit = _ALIGNMENT_BYTES // dtype.itemsize
    padded = -(-shape[-1] // per_unit) * per_unit
    strides = (padded, 1) if len(shape) == 2 else (shape[1] * padded, padded, 1)
    return torch.empty_strided(shape, strides, dtype=dtype, device=a.device)
