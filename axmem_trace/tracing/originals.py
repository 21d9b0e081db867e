"""Marks library calls that this package passes on, so that an error in such a call is not reported as a bug here.

A model calls an operator. The recorder, a mode or a rule handles the call, and often calls the original operator. If
the original operator raises, the model's call is wrong. If code of this package raises, or an operator that it calls
for another reason, the error is in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_OUR_PACKAGE = __name__.partition(".")[0]
_PASSED_ON = ("torch", "contextlib", "functools")
"""Packages whose frames are between a model and an operator: they are not the cause of an error."""
_CALLED_BY_LIBRARIES: set[CodeType] = set()


def called_by_libraries(function: _Function) -> _Function:
    """Marks a function of this package that libraries call: a mode's handler, or a replacement of a library's function."""
    _CALLED_BY_LIBRARIES.add(function.__code__)
    return function


def call_original(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the library's original function, with its arguments or with those that a rule made from them."""
    return function(*args, **kwargs)


def library_frame(trace: TracebackType | None) -> TracebackType | None:
    """The library's frame whose call failed; None: the error is in this package.

    The search goes from the innermost frame outwards, to the first frame that is neither torch's nor this package's.
    Frames of this package are skipped only between `call_original` and the marked replacement.
    """
    links: list[TracebackType] = []
    while trace is not None:
        links.append(trace)
        trace = trace.tb_next
    passed_on = False
    for link in reversed(links):
        package = str(link.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        code = link.tb_frame.f_code
        if code is call_original.__code__:
            passed_on = True
        elif package == _OUR_PACKAGE:
            if not passed_on:
                return None
            passed_on = code not in _CALLED_BY_LIBRARIES
        elif package not in _PASSED_ON:
            return link
    return None
