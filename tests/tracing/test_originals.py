"""Where the cause of a failure is: in the calling library, or in this package. This file takes the role of the
library."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.kernel_recording import gpu_recording

from axmem_trace.tracing.cuda_mode import CudaMode
from axmem_trace.tracing.originals import call_original, called_by_libraries, library_frame
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten


def ours(function: Callable[..., Any]) -> Any:
    """The same function, as if it were written in a module of our package."""
    return FunctionType(
        function.__code__,
        {**function.__globals__, "__name__": "axmem_trace.kernels.invented"},
        closure=function.__closure__,
    )


def rules(*, function: Any = None, dispatch: Any = None) -> Rules:
    table = Rules()
    if function is not None:
        table.function(F.silu)(ours(function))
    if dispatch is not None:
        table.dispatch(aten.silu.default)(ours(dispatch))
    return table


def fault(request: Callable[[], Any], table: Rules | None = None, *, recording: RecordingMode | None = None) -> str:
    """The name of the library's function whose call failed. Empty if the fault is ours."""
    recording = recording or RecordingMode(rules=table)
    with pytest.raises(Exception) as caught, recording, CudaMode(recording).opened():  # noqa: PT011
        request()
    found = library_frame(caught.value.__traceback__)
    return found.tb_frame.f_code.co_name if found is not None else ""


def wrong_shapes() -> Any:
    return torch.empty(2, 3, device="meta") @ torch.empty(2, 3, device="meta")


def wrong_chance() -> Any:
    """`dropout` has a rule here, which passes the call on."""
    return F.dropout(torch.empty(4, device="meta"), p=2.0)


def silu() -> Any:
    return F.silu(torch.empty(4, device="meta"))


def unknown_values() -> Any:
    return torch.empty(4, device="meta").nonzero().tolist()


def wrong_values() -> Any:
    return torch.tensor([1, 2], device="meta")[5].item()


@pytest.mark.parametrize("request_", [wrong_shapes, wrong_chance, unknown_values, wrong_values])
def test_an_error_in_a_function_that_a_library_calls_is_not_our_bug(request_):
    assert fault(request_, recording=gpu_recording()) == request_.__name__


def test_a_rule_that_passes_the_request_on_is_not_at_fault():
    def pass_on(context: Any, function: Any, args: Any, kwargs: Any) -> Any:
        return call_original(function, (torch.empty(2, 2, device="meta"), *args), {"out": 1})

    assert fault(silu, rules(function=pass_on)) == "silu"
    assert fault(silu, rules(dispatch=pass_on)) == "silu"


def test_both_kinds_of_rule_on_the_way():
    def pass_on(context: Any, function: Any, args: Any, kwargs: Any) -> Any:
        return call_original(function, args, kwargs)

    def refuse(context: Any, op: Any, args: Any, kwargs: Any) -> Any:
        return call_original(op, ("not a tensor",), {})

    assert fault(silu, rules(function=pass_on, dispatch=refuse)) == "silu"


@pytest.mark.parametrize("kind", ["function", "dispatch"])
def test_an_error_in_a_rule_is_our_bug(kind):
    def fail(context: Any, function: Any, args: Any, kwargs: Any) -> Any:
        raise KeyError("a bug of ours")

    assert fault(silu, rules(**{kind: fail})) == ""


@pytest.mark.parametrize("kind", ["function", "dispatch"])
def test_an_error_in_an_operator_that_a_rule_calls_is_our_bug(kind):
    """Its source contains `function(*args, **kwargs)` too. An earlier version decided by that text."""

    def call(context: Any, function: Any, args: Any, kwargs: Any) -> Any:
        function, args = torch.matmul, (torch.empty(2, 3, device="meta"), torch.empty(2, 3, device="meta"))
        return function(*args, **kwargs)

    assert fault(silu, rules(**{kind: call})) == ""


def test_a_replaced_function_passes_its_arguments_on():
    def original(value: Any) -> Any:
        return torch.empty(-1, device="meta")

    def replacement(value: Any) -> Any:
        return call_original(torch.empty, (-1,), {"device": "meta"})

    stand_in = called_by_libraries(ours(replacement))

    def library() -> Any:
        return stand_in(1)

    assert fault(library) == "library"
    assert fault(lambda: ours(original)(1)) == ""
