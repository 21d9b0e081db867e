"""Operations that autograd does in place, except while a dispatch mode (such as the recorder) is on.

While a dispatch mode is on, `isTensorSubclassLike` (aten/src/ATen/TensorSubclassLikeUtils.h) is true for every tensor, and
autograd works out of place. A run without a mode, on CPU or GPU, works in place. These rules correct the difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()

_current_node: Any = torch._C._current_autograd_node
_use_count: Any = torch.Tensor._use_count  # type: ignore[attr-defined]
_storage_use_count: Any = torch._C._storage_Use_Count
_ENGINE: CodeType = _engine_run_backward.__code__
_IN_PLACE = {
    aten.index_put.default: aten.index_put_.default,
    aten.index_add.default: aten.index_add_.default,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.scatter.src: aten.scatter_.src,
}


@RULES.dispatch(aten.add.Tensor)
def accumulate(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Adds the gradients of a tensor with several uses in the memory of the first, if nothing else refers to that one.

    Source: torch/csrc/autograd/input_buffer.cpp, `accumulate`, `can_accumulate_inplace`.
    """
    if kwargs or context.recorder.phase != "backward" or torch.is_grad_enabled() or not _called_by_engine():
        return context.run(op, args, kwargs)
    old, new = args
    if not isinstance(new, torch.Tensor) or old.shape != new.shape or old.dtype != new.dtype:
        return context.run(op, args, kwargs)
    others = any(seen > alone for seen, alone in zip(_references(old), _REFERENCES_OF_BUFFER, strict=True))
    return context.run(op, args, kwargs) if others or not _is_dense(old) else old


@RULES.function(F.linear)
def linear(context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """If the input has more than two dimensions and is not contiguous, the bias is added to the matmul's output in place.

    Source: aten/src/ATen/native/Linear.cpp, `linear`; other inputs use `addmm`.
    """
    tensor, weight, bias = _bind_linear(*args, **kwargs)
    plain = all(type(each) in _PLAIN for each in (tensor, weight, bias))
    if not plain or not tensor.is_meta or tensor.dim() <= 2 or tensor.is_contiguous():
        return call_original(function, args, kwargs)
    return torch.matmul(tensor, weight.t()).add_(bias)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _bind_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    return input, weight, bias


@RULES.dispatch(*_IN_PLACE)
def scatter_gradient(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Backward of indexing, gathering and selecting writes into the tensor of zeros that it has just allocated.

    Source: torch/csrc/autograd/FunctionsManual.cpp, `index_backward`, `gather_backward`,
    `value_selecting_reduction_backward_symint`; aten/src/ATen/native/TensorAdvancedIndexing.cpp,
    `index_select_backward_symint`.
    """
    if context.recorder.phase != "backward" or torch.is_grad_enabled() or not _called_by_engine():
        return context.run(op, args, kwargs)
    return _IN_PLACE[op](*args, **kwargs)


def _called_by_engine() -> bool:
    """True if the call comes from a built-in backward formula, or from the autograd engine itself.

    Then the engine calls the operator without other Python code in between, except this file's and the recorder's.
    """
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not _ENGINE:
        if frame.f_code not in _OWN_CODE and frame.f_globals.get("__name__") not in _WRAPPERS:
            return False
        frame = frame.f_back
    return frame is not None


_OWN_CODE = frozenset(
    function.__code__
    for function in (accumulate, scatter_gradient, RecordingMode._record, RecordingMode.__torch_dispatch__)
)
_WRAPPERS = ("torch._compile", "torch._dynamo.eval_frame")
"""Modules of torch whose functions call the handler of a dispatch mode."""


def assert_seen_from_engine() -> None:
    """Check that this file's rules take effect with the installed torch; called at the beginning of each trace.

    The check adds two gradients of one tensor, and fills one by an index, under a separate recorder.

    Raises:
        AssertionError: a frame between the engine and a rule is not known, or a gradient has more references than when this
            file was imported. Then each sum of gradients would be counted as another tensor.
    """
    recording = RecordingMode(rules=RULES)
    recorder = recording.recorder
    with _disable_current_modes(), torch.enable_grad(), recording:
        leaf = torch.zeros(4, requires_grad=True, device="meta")
        loss = (leaf * 2 + leaf * 3).sum() + leaf[:2].sum()
        recorder.mark("backward", 1)
        torch.autograd.grad(loss, leaf)
    made = [each.op for each in recorder.make_ledger().allocations if each.op == str(aten.add.Tensor) and each.step]
    assert not made, (
        f"gradients are no longer added up in place: {len(made)} sums were allocated; see autograd_in_place.py"
    )


def _references(tensor: torch.Tensor) -> tuple[int, int]:
    """The number of references to the tensor and to its storage, as seen from a dispatch rule."""
    return _use_count(tensor), _storage_use_count(tensor.untyped_storage()._cdata)


def _is_dense(tensor: torch.Tensor) -> bool:
    return torch._prims_common.is_non_overlapping_and_dense_or_false(tensor)


class _SeeAccumulation(TorchDispatchMode):
    references = (0, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is aten.add.Tensor and _current_node() is not None:
            self.references = _references(args[0])
        return func(*args, **(kwargs or {}))


def _count_references_of_buffer() -> tuple[int, int]:
    """The result of `_references` for a gradient that only the engine refers to. It includes Python's own references."""
    with _disable_current_modes(), torch.enable_grad(), _SeeAccumulation() as seen:
        leaf = torch.zeros(2, requires_grad=True)
        torch.autograd.grad(leaf * 2 + leaf * 3, leaf, torch.ones(2))
    return seen.references


_REFERENCES_OF_BUFFER = _count_references_of_buffer()
