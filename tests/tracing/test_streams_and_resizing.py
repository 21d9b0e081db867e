"""Actions of distributed code below PyTorch's operators: storages that grow in place, streams, and tensors used on
other streams."""

from __future__ import annotations

import torch

from axmem_trace.ledger import NEVER, Allocation
from axmem_trace.parallel.fake_group.in_place import resizes_recorded
from axmem_trace.parallel.fake_group.streams import Streams
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode


def recorded(recorder: Recorder) -> list[Allocation]:
    return [each for each in recorder.make_ledger().allocations if each.nbytes]


def streams_of(recorder: Recorder) -> Streams:
    return Streams(lambda: recorder.now, recorder.use_stream, recorder.finish_stream)


def test_a_storage_that_grows_in_place_is_a_new_block_each_time() -> None:
    recording = RecordingMode()
    recorder = recording.recorder
    with resizes_recorded(recorder), recording:
        tensor = torch.empty(0, device="meta")
        storage = tensor.untyped_storage()
        storage.resize_(1000)
        storage.resize_(0)
        storage.resize_(2000)
    first, second = recorded(recorder)
    assert (first.nbytes, second.nbytes) == (1000, 2000)
    assert first.freed_tick < second.allocated_tick
    assert second.freed_tick == NEVER


def test_a_resize_outside_is_not_recorded() -> None:
    resize = torch.UntypedStorage.resize_
    with resizes_recorded(Recorder()):
        assert torch.UntypedStorage.resize_ is not resize
    assert torch.UntypedStorage.resize_ is resize


def test_a_block_belongs_to_the_stream_it_was_allocated_on() -> None:
    recording = RecordingMode()
    recorder = recording.recorder
    streams = streams_of(recorder)
    other = streams.make_stream()
    with recording:
        here = torch.empty(10, device="meta")
        with streams.on(other):
            there = torch.empty(20, device="meta")
        again = torch.empty(30, device="meta")
    assert [each.stream for each in recorded(recorder)] == [0, 1, 0]
    del here, there, again


def test_a_freed_block_is_busy_until_the_host_has_waited_for_the_other_stream() -> None:
    recording = RecordingMode()
    recorder = recording.recorder
    streams = streams_of(recorder)
    other = streams.make_stream()
    with recording:
        tensor = torch.empty(10, device="meta")
        recorder.use_on(tensor, other.number)
        early = other.record_event()
        del tensor
        late = other.record_event()
        early.synchronize()  # before the block was freed, so it has no effect
        assert recorded(recorder)[0].busy_until == NEVER
        late.synchronize()
    (block,) = recorded(recorder)
    assert block.freed_tick < block.busy_until < NEVER


def test_waiting_for_a_stream_includes_the_streams_that_it_waited_for() -> None:
    recording = RecordingMode()
    recorder = recording.recorder
    streams = streams_of(recorder)
    gather, reduce = streams.make_stream(), streams.make_stream()
    with recording:
        tensor = torch.empty(10, device="meta")
        recorder.use_on(tensor, reduce.number)
        del tensor
        with streams.on(reduce):
            streams.start_collective()
        with streams.on(gather):
            streams.start_collective()  # a communicator runs one collective after another
        streams.default.wait_stream(gather)
        torch.empty(5, device="meta")
        streams.default.synchronize()
    assert recorded(recorder)[0].busy_until < NEVER


def test_a_role_applies_to_all_allocations_inside_its_context() -> None:
    recording = RecordingMode()
    recorder = recording.recorder
    with recording:
        recorder.mark("forward", 1)
        with recorder.as_role("workspace"):
            inside = torch.empty(10, device="meta")
        outside = torch.empty(20, device="meta")
        recorder.mark("backward", 1)
    assert [each.bucket for each in recorded(recorder)] == ["workspace", "activations"]
    del inside, outside
