"""Matmuls: cuBLAS keeps a workspace for each thread."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.notes import Note
from axmem_trace.recipe.watched_gpu import CardBlock, ask_block
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules
from axmem_trace.units import format_bytes

aten = torch.ops.aten
RULES = Rules()

_LARGE_BYTES, _DEFAULT_BYTES = 32 << 20, 2 * (4096 << 10) + 8 * (16 << 10)
_LARGE_SINCE = (9, 10, 12)


def cublas_workspace_bytes(compute_capability: tuple[int, int]) -> int:
    """`:4096:2:16:8`, 8.125 MiB; 32 MiB on Hopper and Blackwell.

    Source: torch 2.13, aten/src/ATen/cuda/CublasHandlePool.cpp, `parseChosenWorkspaceSize`. The compiled function in the
    CUDA 13 wheel has the same constants: 0x820000, and 0x2000000 if the major version is 9, 10 or 12. cuBLASLt (matmuls with
    a bias) uses the same block, because `TORCH_CUBLASLT_UNIFIED_WORKSPACE` is on by default
    (`unified_cublas_and_lt_workspaces`; torch/backends/cuda/__init__.py, `blas_workspace_size`).
    """
    return _LARGE_BYTES if compute_capability[0] in _LARGE_SINCE else _DEFAULT_BYTES


def _note_cublas(nbytes: int) -> Note:
    return Note(
        kind="ruled",
        key="workspace.cublas",
        text=f"cuBLAS keeps a workspace of {format_bytes(nbytes)} for each thread that runs a matmul: the main "
        "thread and autograd's. Source: torch CublasHandlePool.cpp, `parseChosenWorkspaceSize`",
        bytes=nbytes,
    )


CUBLAS = CardBlock("cuBLAS", cublas_workspace_bytes, _note_cublas)


@RULES.workspace(
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.addmm_.default,
    aten.mv.default,
    aten.addmv.default,
    aten.addbmm.default,
    aten.dot.default,
    aten.vdot.default,
    aten._addmm_activation.default,
    aten._scaled_mm.default,
    aten._int_mm.default,
    aten.mm.out,
    aten.addmm.out,
    aten.bmm.out,
    aten.baddbmm.out,
    aten.baddbmm_.default,
    aten.addmv_.default,
)
def cublas_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """Allocates the workspace at the first matmul of each thread. Each thread has a cuBLAS handle, and each handle and
    stream has a workspace.

    Forward, evaluation and optimizer run in the main thread. Backward, including recomputation, runs in the autograd
    engine's thread of the device (torch/csrc/autograd/engine.cpp; a nested backward runs there too).

    Source: CublasHandlePool.cpp, `getCurrentCUDABlasHandle`, `cublas_handle_stream_to_workspace`.
    """
    thread = "autograd" if context.recorder.phase == "backward" else "main"
    nbytes = ask_block(context.compute_capability, CUBLAS)
    if result.is_meta and context.hold_once(f"{CUBLAS.op}, {thread}", nbytes, CUBLAS.op):
        context.note(CUBLAS.note(nbytes))
    return []
