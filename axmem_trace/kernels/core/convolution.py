"""Convolutions run in cuDNN, a closed library, which also allocates a workspace of unpublished size."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.notes import Note
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()


@RULES.workspace(aten.convolution.default, aten.convolution_backward.default)
def convolution(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """The workspace is not counted, and the report has a note about it.

    Source: aten/src/ATen/native/cudnn/Conv_v8.cpp, `run_conv_plan`: `at::empty` of the plan's own workspace size.
    """
    context.note(
        Note(
            kind="not_modelled",
            key="workspace.cudnn",
            text="the model has convolutions, which run in cuDNN; the workspace that each allocates while it runs is not "
            "counted (torch Conv_v8.cpp, `run_conv_plan`)",
        )
    )
    return []
