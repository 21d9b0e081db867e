"""Work in forked processes: each one has a copy of everything that is here."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from axmem_trace.imports import collector_paused

Result = TypeVar("Result")


def num_workers() -> int:
    """Processors that forked processes may use; 1 where this process can't be copied safely: not on Linux, with threads."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return len(os.sched_getaffinity(0))


_work: Callable[[int], Any] | None = None
"""What a forked process finds and calls."""


def call_in_processes(work: Callable[[int], Result], count: int, workers: int) -> list[Result]:
    """The results of `work` for the numbers below `count`, in order.

    Args:
        work: need not be picklable, its results must be.
        workers: processes that work at the same time.
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
