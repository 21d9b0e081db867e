"""Convolutions. They run in cuDNN, a closed library, which also allocates a workspace of unpublished size."""

from __future__ import annotations

import math
from typing import Any

import torch

from axmem_trace.notes import Note
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules
from axmem_trace.units import format_bytes

aten = torch.ops.aten
RULES = Rules()
KEY = "workspace.cudnn"


@RULES.workspace(aten.convolution.default)
def convolution(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """Adds a note: the workspace is not counted.

    Source: aten/src/ATen/native/cudnn/Conv_v8.cpp, `run_conv_plan`: `at::empty` of the plan's own workspace size.
    `try_configs` skips a plan whose workspace can't be allocated, and tries the next one.
    """
    _note_workspace(context, args[0], args[1], result, transposed=args[6])
    return []


@RULES.workspace(aten.convolution_backward.default)
def convolution_backward(
    context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> list[int]:
    """Adds the same note as forward. Backward runs two matmuls of the same size."""
    _note_workspace(context, args[1], args[2], args[0], transposed=args[7])
    return []


def _note_workspace(
    context: KernelContext, data: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, *, transposed: bool
) -> None:
    wide, narrow = (output, data) if transposed else (data, output)
    nbytes = explicit_bytes(tuple(wide.shape), tuple(weight.shape), tuple(narrow.shape), data.element_size())
    text = (
        "the model has convolutions, which run in cuDNN. The temporary workspace of a convolution is not counted: "
        f"{format_bytes(nbytes)} for the largest one, if cuDNN computes it as a matmul. If memory is too small, PyTorch "
        "uses another plan of cuDNN, so the run does not fail because of it (torch Conv_v8.cpp, `try_configs`)"
    )
    context.note(Note(kind="assumed", key=KEY, text=text, bytes=nbytes, direction="more"))


def explicit_bytes(data: tuple[int, ...], weight: tuple[int, ...], output: tuple[int, ...], itemsize: int) -> int:
    """Bytes of a convolution that is computed as a matmul: one row of inputs for each output position, and copies of input
    and output in another layout.

    >>> explicit_bytes((2, 3, 8, 8), (16, 3, 4, 4), (2, 16, 2, 2), 2)  # 8 rows of 48, 384 inputs, 128 outputs
    1792

    Args:
        data: [batch, channels, ...].
        weight: [channels out, channels in of a group, ...].
        output: [batch, channels out, ...].
    """
    positions = output[0] * math.prod(output[2:])
    columns = positions * data[1] * math.prod(weight[2:])
    return itemsize * (columns + math.prod(data) + math.prod(output))
