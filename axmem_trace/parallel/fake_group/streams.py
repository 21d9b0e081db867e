"""Streams and events for meta tensors. Nothing runs on them; they determine on which stream a block is allocated.

PyTorch's distributed code gets streams from the device's module (`torch.cuda` on a GPU; `_get_device_handle`,
torch/distributed/device_mesh.py). For meta tensors, `DeviceModule` replaces this module. The host is assumed to run far
ahead of the GPU, as it does in training. So work on a stream counts as done only when the host has waited for an event
that was recorded after this work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

DEFAULT_STREAM = 0
"""The number of the compute stream."""


class Stream:
    """A stream, by its number."""

    def __init__(self, streams: Streams, number: int) -> None:
        self._streams = streams
        self.number = number

    def wait_stream(self, other: Stream) -> None:
        """Work that is queued on this stream from now on starts after all work that is now queued on the other
        stream."""
        self._streams.order(self.number, other.number, self._streams.now())

    def wait_event(self, event: Event) -> None:
        """Work that is queued on this stream from now on starts after the event."""
        self._streams.order(self.number, event.stream, event.moment)

    def record_event(self, event: Event | None = None) -> Event:
        """An event after all work that is now queued on this stream."""
        return (event or Event(self._streams)).record(self)

    def is_capturing(self) -> bool:
        """Always False: no CUDA graph is recorded. Adam calls this on a machine with a GPU (torch 2.14
        `optim/optimizer.py`, `_accelerator_graph_capture_health_check`)."""
        return False

    def synchronize(self) -> None:
        """The host waits for this stream."""
        self._streams.wait(self.number, self._streams.now())


class Event:
    """A point in the queue of a stream."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.stream, self.moment = DEFAULT_STREAM, 0

    def record(self, stream: Stream | None = None) -> Event:
        """Sets the event after all work that is now queued on the stream."""
        self.stream = (stream or self._streams.current).number
        self.moment = self._streams.now()
        return self

    def wait(self, stream: Stream | None = None) -> None:
        """The stream (by default the current one) waits for this event."""
        (stream or self._streams.current).wait_event(self)

    def synchronize(self) -> None:
        """The host waits for this event."""
        self._streams.wait(self.stream, self.moment)

    def query(self) -> bool:
        """Always True: the work is done. So no library waits for it in a loop."""
        return True


class Streams:
    """All streams of a process, and which stream waits for which.

    Args:
        now: the record's clock.
        on_switch: called with the number of the new current stream.
        finished: called with a stream's number and a tick: the work that was queued on it until then is done.
    """

    def __init__(
        self, now: Callable[[], int], on_switch: Callable[[int], None], finished: Callable[[int, int], None]
    ) -> None:
        self.now, self._finished, self._on_switch = now, finished, on_switch
        self.default = Stream(self, DEFAULT_STREAM)
        self.current = self.default
        self._count = 0
        self._waits: dict[int, list[tuple[int, int, int]]] = {}
        """By stream, a list of waits: the tick from which it waits, the other stream, and the tick until which that
        stream's work must be done."""
        self._done: dict[int, int] = {}
        self._last_collective: tuple[int, int] | None = None

    def make_stream(self, *args: Any, **kwargs: Any) -> Stream:
        """A new stream. Its priority is ignored."""
        self._count += 1
        return Stream(self, self._count)

    def make_event(self, *args: Any, **kwargs: Any) -> Event:
        """A new event."""
        return Event(self)

    def order(self, stream: int, other: int, moment: int) -> None:
        """From now on, `stream` waits until the other stream has done its work up to the tick `moment`."""
        if stream != other and moment > self._done.get(other, 0):
            self._waits.setdefault(stream, []).append((self.now(), other, moment))

    def start_collective(self) -> None:
        """A collective starts on the current stream. A communicator runs one collective after the other, even on
        different streams (NCCL: src/enqueue.cc, `ncclStrongStream`)."""
        if self._last_collective is not None:
            self.order(self.current.number, *self._last_collective)
        self._last_collective = (self.current.number, self.now())

    def wait(self, stream: int, moment: int) -> None:
        """The host waits: the stream's work up to the tick `moment` is done, and also the work that it waited for."""
        if moment <= self._done.get(stream, 0):
            return
        self._done[stream] = moment
        self._finished(stream, moment)
        waits = self._waits.get(stream, [])
        self._waits[stream] = [each for each in waits if each[0] > moment]
        for since, other, until in waits:
            if since <= moment:
                self.wait(other, until)

    @contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        """While open, blocks are allocated on `stream` (`torch.cuda.stream`)."""
        before = self.current
        self._switch(before if stream is None else stream)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, stream: Stream) -> None:
        self.current = stream
        self._on_switch(stream.number)


class DeviceModule:
    """The device module of meta tensors, as `torch.cuda` is that of CUDA tensors."""

    def __init__(self, streams: Streams, num_devices: int) -> None:
        self._streams, self._num_devices = streams, num_devices
        self.Stream, self.Event, self.stream = streams.make_stream, streams.make_event, streams.on

    def current_device(self) -> torch.device:
        """The only device."""
        return torch.device("meta")

    def device_count(self) -> int:
        """The number of GPUs of this machine."""
        return self._num_devices

    def set_device(self, device: Any) -> None:
        """Does nothing: there is only one device."""

    def is_available(self) -> bool:
        """Always."""
        return True

    def is_initialized(self) -> bool:
        """Always."""
        return True

    def current_stream(self, device: Any = None) -> Stream:
        """The stream in use."""
        return self._streams.current

    def default_stream(self, device: Any = None) -> Stream:
        """The stream that compute runs on."""
        return self._streams.default

    def synchronize(self, device: Any = None) -> None:
        """The host waits for everything."""
        for number in range(self._streams._count + 1):
            self._streams.wait(number, self._streams.now())
