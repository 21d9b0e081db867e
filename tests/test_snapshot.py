"""Snapshots: PyTorch's own `torch.cuda._memory_viz` opens them, and their sums equal those of the ledger."""

import io
import pickle

import pytest
from support.snapshot_ledger import LEDGER, MIB, SETTINGS

from axmem_trace.allocator import parse_alloc_conf, replay
from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.snapshot import make_snapshot, write_snapshot


@pytest.fixture(scope="module")
def viz():
    return pytest.importorskip("torch.cuda._memory_viz")


def entries(snapshot, *actions):
    (trace,) = snapshot["device_traces"]
    return [entry for entry in trace if entry["action"] in actions]


@pytest.mark.parametrize("text", SETTINGS)
class TestSums:
    def test_every_allocation_is_reported_once(self, text):
        snapshot = make_snapshot(LEDGER, parse_alloc_conf(text))
        # requested sizes, not rounded sizes; allocations of 0 bytes and of the CPU are not shown
        assert [entry["size"] for entry in entries(snapshot, "alloc")] == [30 * MIB, 12 * MIB, 1000, 30 * MIB]
        for action in ("free_requested", "free_completed"):
            assert [entry["size"] for entry in entries(snapshot, action)] == [1000, 12 * MIB]

    def test_live_bytes_are_the_ledgers_at_every_tick(self, text):
        snapshot, live = make_snapshot(LEDGER, parse_alloc_conf(text)), {}
        for entry in entries(snapshot, "alloc", "free_completed"):
            if entry["action"] == "alloc":
                assert entry["addr"] not in live
                live[entry["addr"]] = entry["size"]
            else:
                assert live.pop(entry["addr"]) == entry["size"]
            alive = LEDGER.alive_at(entry["time_us"])
            assert sum(live.values()) == sum(allocation.nbytes for allocation in alive)

    def test_segments_are_the_reservation(self, text):
        snapshot, held = make_snapshot(LEDGER, parse_alloc_conf(text)), 0
        sign = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
        found = []
        for entry in entries(snapshot, *sign):
            held += sign[entry["action"]] * entry["size"]
            found.append((entry["time_us"], held))
        reservation = replay(LEDGER, parse_alloc_conf(text))
        assert tuple(found) == reservation.timeline
        assert sum(segment["total_size"] for segment in snapshot["segments"]) == reservation.reserved_at(12)

    def test_blocks_fill_their_segment(self, text):
        snapshot = make_snapshot(LEDGER, parse_alloc_conf(text))
        for segment in snapshot["segments"]:
            address = segment["address"]
            for block in segment["blocks"]:
                assert block["address"] == address
                address += block["size"]
            assert address == segment["address"] + segment["total_size"]
            used = [block for block in segment["blocks"] if block["state"] == "active_allocated"]
            assert segment["allocated_size"] == segment["active_size"] == sum(block["size"] for block in used)
            assert segment["requested_size"] == sum(block["requested_size"] for block in used)
        # the weights and their gradients are still alive: 60 MiB
        assert sum(segment["requested_size"] for segment in snapshot["segments"]) == 60 * MIB

    def test_allocations_lie_in_memory_that_the_driver_gave(self, text):
        mapped = []
        for entry in make_snapshot(LEDGER, parse_alloc_conf(text))["device_traces"][0]:
            if entry["action"] in ("segment_alloc", "segment_map"):
                mapped.append((entry["addr"], entry["addr"] + entry["size"]))
            if entry["action"] == "alloc":
                begin, end = entry["addr"], entry["addr"] + entry["size"]
                covered = sum(max(0, min(end, high) - max(begin, low)) for low, high in mapped)
                assert covered == entry["size"]

    def test_pytorchs_viewers_open_it(self, text, viz, tmp_path):
        path = tmp_path / "snapshot.pickle"
        write_snapshot(path, LEDGER, parse_alloc_conf(text))
        snapshot = pickle.loads(path.read_bytes())
        assert "Active Memory Timeline" in viz.trace_plot(snapshot)
        assert "Active Cached Memory Timeline" in viz.trace_plot(snapshot, plot_segments=True)
        assert "Allocator State History" in viz.segment_plot(snapshot)
        reported = viz.trace(snapshot)
        assert f"{len(snapshot['device_traces'][0])} entries" in reported
        assert ("cudaMalloc" in reported) == (text != "expandable_segments:True")
        # segsum adds requested bytes and gaps up to each segment's size, and raises if they differ
        summary = viz.segsum(snapshot)
        reserved = sum(segment["total_size"] for segment in snapshot["segments"])
        assert f"segments: {len(snapshot['segments'])}\n" in summary
        assert f"total_reserved: {reserved / MIB:.1f}MiB\n" in summary
        assert "total_allocated: 60.0MiB\n" in summary

    def test_flame_graphs_add_up_to_what_is_reserved(self, text, viz):
        snapshot = make_snapshot(LEDGER, parse_alloc_conf(text))
        for view in (viz.memory, viz.segments):
            lines = view(snapshot, format_flamegraph=str).splitlines()
            reserved = sum(segment["total_size"] for segment in snapshot["segments"])
            assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == reserved
            (gradient,) = (line for line in lines if "backward" in line)
            names = "phase:0:backward, step 1;module:0:model;module:0:model.embed;op:0:aten.mm.default"
            assert gradient.endswith(f"active_allocated;{names} {30 * MIB}")


def test_frames_name_operator_modules_and_phase():
    snapshot = make_snapshot(LEDGER, parse_alloc_conf(""))
    silu = entries(snapshot, "alloc")[2]
    assert [frame["name"] for frame in silu["frames"]] == [
        "aten.silu.default",
        "model.layers.0.mlp",
        "model.layers.0",
        "model.layers",
        "model",
        "forward, step 1",
    ]
    assert all(set(frame) == {"name", "filename", "line"} for frame in silu["frames"])
    assert entries(snapshot, "free_requested")[0]["frames"] == silu["frames"]
    # a segment belongs to the allocation that follows it; a call of `empty_cache` belongs to no allocation
    assert entries(snapshot, "segment_alloc")[0]["frames"][0]["name"] == "aten.empty"
    assert entries(snapshot, "segment_free")[0]["frames"] == []


def test_the_viewer_colours_by_bucket():
    snapshot = make_snapshot(LEDGER, parse_alloc_conf(""))
    assert [entry["category"] for entry in entries(snapshot, "alloc")] == [
        "weights",
        "activations",
        "workspace",
        "gradients",
    ]


def test_phases_are_annotations():
    annotations = make_snapshot(LEDGER, parse_alloc_conf(""))["external_annotations"]
    assert [(each["name"], each["stage"], each["time_us"]) for each in annotations] == [
        ("load, step 0", "START", 0),
        ("load, step 0", "END", 2),
        ("forward, step 1", "START", 2),
        ("forward, step 1", "END", 6),
        ("backward, step 1", "START", 6),
        ("backward, step 1", "END", 10),
    ]


def test_out_of_memory_ends_the_history(viz):
    # 30 + 12 MiB and a small segment of 2 MiB are allocated; then 30 MiB are requested, but 50 - 44 = 6 are free
    snapshot = make_snapshot(LEDGER, parse_alloc_conf(""), capacity_bytes=50 * MIB)
    last = snapshot["device_traces"][0][-1]
    # the small block was freed before: its segment is released before the second attempt, so 8 MiB are free
    assert (last["action"], last["size"], last["device_free"]) == ("oom", 30 * MIB, 8 * MIB)
    assert "addr" not in last
    assert "raise OutOfMemoryError # 30.0MiB requested, 8.0MiB free in CUDA" in viz.trace(snapshot)


def test_an_expandable_segment_with_a_hole_is_shown_as_two():
    # 40, 20 and 20 MiB in pages of 20; the first two are freed, and `empty_cache` unmaps 0-20 and 20-60
    ledger = Ledger(
        allocations=(
            Allocation(nbytes=20 * MIB, allocated_tick=1),
            Allocation(nbytes=40 * MIB, allocated_tick=2, freed_tick=4),
            Allocation(nbytes=20 * MIB, allocated_tick=3),
        ),
        marks=(),
        ticks=9,
        empty_cache_ticks=(5,),
    )
    low, high = make_snapshot(ledger, parse_alloc_conf("expandable_segments:True"))["segments"]
    assert high["address"] - low["address"] == 60 * MIB
    assert (low["total_size"], high["total_size"]) == (20 * MIB, 20 * MIB)
    assert low["is_expandable"]


def test_settings():
    settings = make_snapshot(LEDGER, parse_alloc_conf("max_split_size_mb:64,roundup_power2_divisions:8"))
    settings = settings["allocator_settings"]
    assert settings["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64,roundup_power2_divisions:8"
    assert settings["max_split_size"] == 64 * MIB
    assert settings["roundup_power2_divisions"]["32768"] == 8
    assert make_snapshot(LEDGER, parse_alloc_conf(""))["allocator_settings"]["max_split_size"] == -1


def test_the_file_holds_plain_data_that_the_web_page_can_read(tmp_path):
    class PlainUnpickler(pickle.Unpickler):
        def find_class(self, module, name):
            raise AssertionError(f"{module}.{name} is no plain data")

    path = tmp_path / "snapshot.pickle"
    write_snapshot(path, LEDGER, parse_alloc_conf(""))
    content = path.read_bytes()
    assert content[:2] == b"\x80\x04"  # PROTO 4
    assert PlainUnpickler(io.BytesIO(content)).load() == make_snapshot(LEDGER, parse_alloc_conf(""))


def test_an_empty_ledger():
    snapshot = make_snapshot(Ledger(allocations=(), marks=(), ticks=0), parse_alloc_conf(""))
    assert (snapshot["segments"], snapshot["device_traces"]) == ([], [[]])


ENTRY = {
    "action": "str",
    "size": "int",
    "stream": "int",
    "time_us": "int",
    "compile_context": "str",
    "user_metadata": "str",
    "pool_id": "tuple",
    "frames": "list",
}
REAL = {
    "segment": {"device": "int", "address": "int", "total_size": "int", "allocated_size": "int", "active_size": "int",
                "requested_size": "int", "stream": "int", "segment_type": "str", "segment_pool_id": "tuple",
                "is_expandable": "bool", "frames": "list", "blocks": "list"},
    "block": {"address": "int", "size": "int", "requested_size": "int", "state": "str", "frames": "list"},
    "entry": {**ENTRY, "addr": "int"},
    "oom": {**ENTRY, "device_free": "int"},
    "settings": {
        "PYTORCH_CUDA_ALLOC_CONF": "str", "max_split_size": "int", "garbage_collection_threshold": "float",
        "expandable_segments": "bool", "pinned_num_register_threads": "int", "release_lock_on_cudamalloc": "bool",
        "pinned_use_cuda_host_register": "bool", "graph_capture_record_stream_reuse": "bool",
        "roundup_power2_divisions": "dict", "max_round_threshold": "int", "max_cached_size": "int"},
    "annotation": {"device": "int", "time_us": "int", "name": "str", "stage": "str"},
}  # fmt: skip
"""Keys and types of `torch.cuda.memory._snapshot()`, as torch 2.13's CUDA build gave them (`cuda_without_gpu.py`)."""


def test_every_key_is_there_and_of_the_real_type():
    def types(mapping):
        return {key: type(value).__name__ for key, value in mapping.items()}

    snapshot = make_snapshot(LEDGER, parse_alloc_conf("expandable_segments:True"))
    assert types(snapshot) == {
        "segments": "list",
        "device_traces": "list",
        "allocator_settings": "dict",
        "external_annotations": "list",
    }
    assert types(snapshot["allocator_settings"]) == REAL["settings"]
    assert all(types(annotation) == REAL["annotation"] for annotation in snapshot["external_annotations"])
    for segment in snapshot["segments"]:
        assert types(segment) == REAL["segment"]
        assert all(types(block) == REAL["block"] for block in segment["blocks"])
    for entry in snapshot["device_traces"][0]:
        entry.pop("category", None)  # only our snapshots have it
        assert types(entry) == REAL["entry"]
    (failure,) = entries(make_snapshot(LEDGER, parse_alloc_conf(""), capacity_bytes=3 * MIB), "oom")
    assert types(failure) == REAL["oom"]
