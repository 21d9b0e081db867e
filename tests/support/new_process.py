"""Runs functions in processes that have imported the libraries and have run nothing else, so they have no patch of a
test.

Importing torch and transformers takes five seconds. It is done once for each session, in a process that does nothing
else; a copy of that process (`fork`) runs each function.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from support.paths import ROOT

_Result = TypeVar("_Result")
_LIBRARIES = ("transformers", "peft", "accelerate", "torch.distributed.fsdp")


class Finished(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def in_new_process(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """The function's result in a new process. Arguments and result are pickled."""
    return _libraries().submit(_call_in_copy, function, arguments, dict(os.environ)).result()


def in_new_processes(function: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> list[int | None]:
    """Runs each call in its own process, all at the same time, and returns their exit codes."""
    return _libraries().submit(_run_copies, function, calls, dict(os.environ)).result()


def run_command(arguments: Sequence[str]) -> Finished:
    """Runs `python -m ARGUMENTS` in the root of the repository, in a process that has imported the libraries before."""
    return in_new_process(_run_module, tuple(arguments))


@functools.cache
def _libraries() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_import_libraries)


def _import_libraries() -> None:
    from axmem_trace.imports import import_libraries

    import_libraries()
    for name in _LIBRARIES:
        importlib.import_module(name)


def _call_in_copy(function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str]) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as copy:
        return copy.submit(_call, function, arguments, environment).result()


def _run_copies(
    function: Callable[..., None], calls: Sequence[tuple[Any, ...]], environment: dict[str, str]
) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    copies = [context.Process(target=_call, args=(function, arguments, environment)) for arguments in calls]
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.join()
    return [copy.exitcode for copy in copies]


def _call(function: Callable[..., _Result], arguments: tuple[Any, ...], environment: dict[str, str]) -> _Result:
    os.environ.clear()
    os.environ.update(environment)
    return function(*arguments)


def _run_module(arguments: tuple[str, ...]) -> Finished:
    sys.argv = list(arguments)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / "stdout", Path(folder) / "stderr"]
        for number, path in enumerate(streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        try:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        return Finished(code, *(path.read_text(encoding="utf-8") for path in streams))
