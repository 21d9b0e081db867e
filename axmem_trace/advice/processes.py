"""Work in forked processes. Each process has a copy of all objects of this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from axmem_trace.imports import collector_paused

Result = TypeVar("Result")


def num_workers() -> int:
    """The number of processors that forked processes may use; 1 if forking is not safe: not on Linux, or with
    threads."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return len(os.sched_getaffinity(0))


_work: Callable[[int], Any] | None = None
"""The function that a forked process calls."""


def call_in_processes(work: Callable[[int], Result], count: int, workers: int) -> list[Result]:
    """The results of `work` for the numbers from 0 to before `count`, in order.

    Args:
        work: it need not be picklable, but its results must be.
        workers: the number of processes that work at the same time.
    """
    global _work
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    _work = work
    try:
        # a collection in a child would copy all pages that it shares with this process
        with collector_paused(), ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            return list(pool.map(_call, range(count)))
    finally:
        _work = None


def _call(number: int) -> Any:
    assert _work is not None
    return _work(number)
