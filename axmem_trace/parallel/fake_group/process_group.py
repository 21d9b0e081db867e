"""One rank of many in this process, on meta: PyTorch's `fake` process group, whose collectives return immediately."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from axmem_trace.parallel.fake_group.streams import DeviceModule, Streams
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.rules import Rules


def exchange_rules() -> Rules:
    """Rules for the result of a collective: it is wrapped until it is waited for, and then the same tensor is used. On
    meta, torch would make a new tensor for each of the two (torch 2.14 `distributed/_functional_collectives.py`,
    `_wait_tensor_meta` and the meta kernel of `_wrap_tensor_autograd`)."""
    rules, ops = Rules(), torch.ops._c10d_functional
    rules.dispatch(ops.wait_tensor.default)(_wait)
    if hasattr(ops, "_wrap_tensor_autograd"):
        rules.dispatch(ops._wrap_tensor_autograd.default)(_wrap)
    return rules


def _wait(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]


def _wrap(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return AsyncCollectiveTensor(args[0])


@contextmanager
def collectives_recorded(recorder: Recorder, start: Callable[[], None]) -> Iterator[None]:
    """Calls `start` at each collective that the recorder sees: PyTorch's collectives are operators (`c10d::`)."""
    before, recorder.on_collective = recorder.on_collective, start
    try:
        yield
    finally:
        recorder.on_collective = before


@contextmanager
def open_process_group(recorder: Recorder, *, rank: int, num_ranks: int) -> Iterator[Streams]:
    """While open, this process is `rank` of `num_ranks`, and meta tensors have streams that the recorder knows.

    Source: torch/testing/_internal/distributed/fake_pg.py; torch/distributed/device_mesh.py, `_get_device_handle`.

    Raises:
        RuntimeError: a process group is open already.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("a process group is open already; an estimate for many GPUs needs its own")
    streams = Streams(lambda: recorder.now, recorder.use_stream, recorder.finish_stream)
    with ExitStack() as stack:
        stack.enter_context(replaced(torch, "meta", DeviceModule(streams, num_ranks), new=True))
        stack.enter_context(collectives_recorded(recorder, streams.start_collective))
        stack.enter_context(replaced(sys, "excepthook", sys.excepthook))  # torch replaces it, and never restores it
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)
        stack.callback(dist.destroy_process_group)
        _forget_layouts()
        yield streams


def _forget_layouts() -> None:
    """Clears DTensor's cache of layouts: they contain process groups of the rank for which they were calculated."""
    from torch.distributed.tensor import debug

    clear = getattr(debug, "_clear_sharding_prop_cache", None)
    if clear is not None:
        clear()
