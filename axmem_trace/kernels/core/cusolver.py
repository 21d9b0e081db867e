"""Decompositions in cuSOLVER, a closed library. PyTorch allocates the workspace that the library requests.

The requested sizes are not published. The library's `..._bufferSize` functions return them without a GPU, for any content
of the handle (`scripts/cusolver_sizes.py`, cuSOLVER 12.0.4). The formulas here are never below these sizes for 8 to 16,384
rows and columns. From 256 on, `gesvdj_elements` is at most 1.5 % above them; `gesvd_elements`, an upper bound, is 17 % above
them in the median. `scripts/cuda_without_gpu.py` has recorded which functions PyTorch calls, and what else it allocates:
torch 2.14.1's CUDA build, with a cuSOLVER that only records the calls.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.notes import Note
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules
from axmem_trace.units import format_bytes

aten = torch.ops.aten
RULES = Rules()
KEY = "workspace.cusolver"
SVD = str(aten._linalg_svd.default)
_STATUS_BYTES = 4
_SLACK = 128
"""The largest difference, in elements, between the library's rounded sizes and the sums below."""


def gesvdj_elements(rows: int, columns: int) -> int:
    """Elements of the workspace of `gesvdj`, the singular value decomposition by rotations that PyTorch tries first.

    >>> gesvdj_elements(11008, 4096) >= 66_855_168  # cuSOLVER 12.0.4 requests this: 255 MiB in fp32
    True
    """
    large, small = max(rows, columns), min(rows, columns)
    padded = _rounded(small)
    own = padded * padded // 256 + 65 * padded + padded // 32 + 1024
    if large == small:
        return 2 * small * small + own + _SLACK
    transposed = rows * columns if rows < columns else 0
    divided = large * small + small * small + 256 * large + 514 * small + 65792
    least = max(divided, _triangle_elements(small) + 3 * small)
    return max(least + transposed, 3 * small * small + own) + _SLACK


def gesvd_elements(rows: int, columns: int) -> int:
    """An upper bound of the elements of `gesvd`'s workspace. PyTorch runs `gesvd` if the rotations do not converge.

    >>> gesvd_elements(11008, 4096) >= 188_505_088
    True
    """
    large, small = max(rows, columns), min(rows, columns)
    divided = 3 * small * small if large > small else 0
    return 3 * large * small + divided + 256 * large + 512 * small + _triangle_elements(small) + (1 << 15)


def geqrf_bytes(columns: int, itemsize: int) -> int:
    """Bytes of the workspace of `Xgeqrf`, which computes the triangle of a QR decomposition."""
    return itemsize * _triangle_elements(columns) + 512


def orgqr_elements(rows: int, columns: int) -> int:
    """Elements of the workspace of `orgqr`, which computes the orthogonal matrix [rows, columns] of a QR decomposition."""
    return rows * min(columns, 128) + 256 * max(columns, 64) + 16640 + _SLACK


def potrf_bytes(size: int, itemsize: int) -> int:
    """Bytes of the workspace of `Xpotrf`, the Cholesky decomposition of [size, size]."""
    return _rounded(size) ** 2 // 1024 * itemsize + 256


def _rounded(size: int) -> int:
    return -(-size // 64) * 64


def _triangle_elements(columns: int) -> int:
    return 1024 * max(columns, 256) + (1 << 19)


@RULES.workspace(aten._linalg_svd.default)
def svd_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """One status word for each matrix of a batch, a column-major copy, and the workspace of `gesvdj`.

    Source: torch 2.13 BatchLinearAlgebra.cpp `_linalg_svd_out` (`info`), cuda/linalg/BatchLinearAlgebraLib.cpp
    `svd_cusolver` (`cloneBatchedColumnMajor`, then `gesvdj`, and `gesvd` for matrices that did not converge).
    """
    matrix = args[0]
    rows, columns = matrix.shape[-2:]
    size = matrix.element_size()
    used = gesvdj_elements(rows, columns) * size
    more = gesvd_elements(rows, columns) * size - used
    context.note(_note_svd(rows, columns, used, max(0, more)))
    return [_STATUS_BYTES * matrix.shape[:-2].numel(), matrix.numel() * size, used]


@RULES.workspace(aten.linalg_qr.default)
def qr_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """The reflectors' factors, a status word, and the larger of two workspaces that are used one after the other. In mode
    `r`, a tall matrix is also copied.

    Source: torch 2.13 BatchLinearAlgebra.cpp `linalg_qr_out`, cuda/linalg/BatchLinearAlgebraLib.cpp `geqrf_cusolver`,
    `orgqr_helper_cusolver`.
    """
    matrix = args[0]
    mode = args[1] if len(args) > 1 else kwargs.get("mode", "reduced")
    rows, columns = matrix.shape[-2:]
    size, small = matrix.element_size(), min(rows, columns)
    factors = matrix.shape[:-2].numel() * small * size
    triangle = geqrf_bytes(columns, size)
    if mode == "r":
        copied = [matrix.numel() * size] if rows > columns else []
        return [factors, *copied, _STATUS_BYTES, triangle]
    width = rows if mode == "complete" else small
    return [factors, _STATUS_BYTES, max(triangle, orgqr_elements(rows, width) * size)]


@RULES.workspace(aten.linalg_cholesky_ex.default)
def cholesky_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Source: torch 2.13 cuda/linalg/BatchLinearAlgebraLib.cpp `apply_cholesky_cusolver_potrf_looped`."""
    return potrf_bytes(args[0].shape[-1], args[0].element_size())


def _note_svd(rows: int, columns: int, used: int, more: int) -> Note:
    text = (
        f"cuSOLVER's workspace for the singular value decomposition of {rows} x {columns} is counted as "
        f"{format_bytes(used)}, the size that its own function returns. If its rotations do not converge, PyTorch runs "
        f"`gesvd`, which needs up to {format_bytes(more)} more"
    )
    return Note(kind="not_modelled", key=KEY, text=text, direction="more", at_most_bytes=more)
