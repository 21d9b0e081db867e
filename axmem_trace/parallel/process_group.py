"""One rank of many in this process: PyTorch's `fake` process group, whose collectives return immediately, on meta."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist

from axmem_trace.parallel.streams import DeviceModule, Streams
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder


@contextmanager
def collectives_recorded(recorder: Recorder, start: Callable[[], None]) -> Iterator[None]:
    """`start` is called with each exchange among ranks that the recorder sees: PyTorch's are operators (`c10d::`)."""
    before, recorder.on_collective = recorder.on_collective, start
    try:
        yield
    finally:
        recorder.on_collective = before


@contextmanager
def open_process_group(recorder: Recorder, *, rank: int, num_ranks: int) -> Iterator[Streams]:
    """While open, this process is `rank` of `num_ranks`, and meta tensors have streams that the recorder knows of.

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
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)
        stack.callback(dist.destroy_process_group)
        yield streams
