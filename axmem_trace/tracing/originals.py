"""Calls that a library made and we pass on, marked so that a failure in them is not taken for one of ours.

A model asks for an operator; the recorder, a mode or a rule answers, and often calls what was asked for. Where that
fails, the model's request is at fault. Where our code fails on the way, or in an operator that it calls by itself, we are.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_OUR_PACKAGE = __name__.partition(".")[0]
_PASSED_ON = ("torch", "contextlib", "functools")
"""Packages whose frames are between a model and an operator: they are not at fault themselves."""
_STAND_INS: set[CodeType] = set()


def stands_in(function: _Function) -> _Function:
    """Marks a function of ours that libraries call in place of their own: a mode's handler, a replaced function."""
    _STAND_INS.add(function.__code__)
    return function


def call_original(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls what the library asked for, with what it gave or what a rule makes of that."""
    return function(*args, **kwargs)


def library_frame(trace: TracebackType | None) -> TracebackType | None:
    """Where the library whose request failed made it; None: the failure is one of our own code.

    From the innermost frame outwards: the first that is of neither torch nor ours. Frames of ours are passed by only
    between `call_original` and the stand-in that was asked.
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
            passed_on = code not in _STAND_INS
        elif package not in _PASSED_ON:
            return link
    return None
