"""`make_report` on a ledger that can be followed by hand (`tests/hand_made.py`)."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from support.hand_made_run import (
    CONTEXT_BYTES,
    NOTES,
    SEGMENT,
    make_facts,
    make_hand_made_report,
    make_ledger,
    make_recipe,
    make_reservation,
)

from axmem_trace.allocator import replay
from axmem_trace.ledger import Allocation, Ledger, Mark
from axmem_trace.model_facts import ModuleFact
from axmem_trace.report import make_report
from axmem_trace.report.make import assert_adds_up
from axmem_trace.report.types import Buckets

GIB = 1 << 30


@pytest.fixture(scope="module")
def report():
    return make_hand_made_report()


def make_small_report(ledger, facts=None, **rest):
    values = {"notes": (), "versions": {}, "elapsed_seconds": {}, **rest}
    return make_report(make_recipe(), facts or make_facts(), ledger, make_reservation(ledger), **values)


def test_buckets_are_blocks_alive_at_the_peak(report):
    # The peak: backward of step 2, when the logits' gradient is allocated and the optimizer state exists.
    # weights: 2 * 12800 + 2 * (2048 + 512 for 260 bytes of absmax) = 30720
    # adapters: 4 * 2048 = 8192; optimizer: 4 * 4608 (4100 rounded up) = 18432
    # activations: tokens 1024 (800) + hidden 2 * 6656 (6400) + logits 40448 (40000) = 54784
    # workspace: the logits' gradient 40448
    assert report.buckets == Buckets(
        weights=30720, adapters=8192, gradients=0, optimizer=18432, activations=54784, workspace=40448
    )
    assert report.buckets.total == report.peak.allocated_bytes == 152576


def test_peak_has_the_phase_the_module_and_the_needed_memory(report):
    peak = report.peak
    assert (peak.phase, peak.step, peak.module) == ("backward", 2, "lm_head")
    assert peak.op == "aten._log_softmax_backward_data.default"
    assert peak.active_bytes == peak.counted_bytes == peak.allocated_bytes
    assert peak.reserved_bytes == SEGMENT
    assert peak.device_bytes == SEGMENT + CONTEXT_BYTES


def test_counted_bytes_equal_the_allocators_own_count():
    ledger = make_ledger()
    reservation = make_reservation(ledger, peak_allocated_bytes=200_000)
    report = make_report(make_recipe(), make_facts(), ledger, reservation, notes=(), versions={}, elapsed_seconds={})
    assert (report.peak.counted_bytes, report.peak.allocated_bytes) == (200_000, 152576)
    # a step's peak is the highest of its phases, and its end is that of its last phase; no figure is below the ledger's
    peaks, ends = {("forward", 1): 190_000, ("backward", 1): 200_000}, {("backward", 1): 1, ("optimizer", 1): 60_000}
    reservation = make_reservation(ledger, allocated_peaks=peaks, allocated_ends=ends)
    report = make_report(make_recipe(), make_facts(), ledger, reservation, notes=(), versions={}, elapsed_seconds={})
    step = report.phases["step_1"]
    assert (step.counted_bytes, step.counted_end_bytes, step.end_bytes) == (200_000, 60_000, 57344)
    assert step.phases["forward"].counted_bytes == 190_000
    assert step.phases["backward"].counted_end_bytes == step.phases["backward"].end_bytes > 1


def test_resident_counts_raw_bytes_in_full(report):
    # weights: 2 * 12800 + 2 * (2048 + 260) = 30216; adapters and their gradients: 4 * 2048; optimizer: 4 * 4100
    assert dataclasses.asdict(report.resident) == {
        "weights": 30216,
        "adapters": 8192,
        "reference": 0,
        "gradients": 8192,
        "optimizer": 16400,
    }


def test_step_counters_on_the_cpu_are_reported_separately(report):
    assert report.host.cpu.optimizer == report.host.cpu.peak_bytes == 4 * 4
    assert report.host.managed.peak_bytes == 0


def test_phases(report):
    # load: 30720 + 8192. Step 1: + 54784 activations = 93696 after forward, + 40448 in backward; after the optimizer
    # the weights, the adapters and 18432 bytes of state are left. Step 2 is higher by 18432.
    phases = report.phases
    assert list(phases) == ["load", "step_1", "step_2"]
    assert {name: use.allocated_bytes for name, use in phases.items()} == {
        "load": 38912,
        "step_1": 134144,
        "step_2": 152576,
    }
    assert {name: use.end_bytes for name, use in phases.items()} == {"load": 38912, "step_1": 57344, "step_2": 57344}
    assert report.after_load.allocated_bytes == 38912
    parts = phases["step_1"].phases
    assert {name: use.allocated_bytes for name, use in parts.items()} == {
        "forward": 93696,
        "backward": 134144,
        "optimizer": 38912 + 8192 + 1024 + 18432,
    }
    assert all(use.buckets.total == use.allocated_bytes for use in (*phases.values(), *parts.values()))
    assert all(use.reserved_bytes == SEGMENT for use in (*phases.values(), *parts.values()))


def test_a_phase_begins_with_what_is_alive():
    """The optimizer of step 2 allocates nothing: its peak is the memory that is alive after backward."""
    # 38912 weights and adapters + 18432 state + 8192 gradients + 1024 tokens = 66560
    optimizer = make_hand_made_report().phases["step_2"].phases["optimizer"]
    assert (optimizer.allocated_bytes, optimizer.op) == (66560, "")


def test_evaluation_is_a_separate_phase():
    ledger = Ledger(
        allocations=(
            Allocation(nbytes=1024, allocated_tick=0, phase="load", step=0, role="weight"),
            Allocation(nbytes=4096, allocated_tick=1, freed_tick=2, phase="eval", step=0, module="lm_head"),
            Allocation(nbytes=512, allocated_tick=3, freed_tick=4, phase="forward", step=1),
        ),
        marks=(
            Mark(tick=0, phase="load", step=0),
            Mark(tick=1, phase="eval", step=0),
            Mark(tick=3, phase="forward", step=1),
        ),
        ticks=5,
    )
    report = make_small_report(ledger)
    assert {name: use.allocated_bytes for name, use in report.phases.items()} == {
        "load": 1024,
        "eval": 5120,
        "step_1": 1536,
    }
    assert (report.peak.phase, report.peak.module) == ("eval", "lm_head")


def test_dtypes_equal_those_of_the_models_tensors(report):
    rows = [(row.kind, row.dtype, row.trainable, row.tensors, row.elements, row.bytes) for row in report.dtypes]
    assert rows == [
        ("parameter", "float32", True, 4, 4 * 512, 4 * 2048),
        ("parameter", "bfloat16", False, 2, 2 * 6400, 2 * 12800),
        ("parameter", "uint8", False, 2, 2 * 2048, 2 * 2048),
        ("buffer", "float32", False, 2, 2 * 65, 2 * 260),
    ]


def test_logical_parameters(report):
    assert report.model.parameters == 6400 + 2 * (4096 + 512 + 512) + 6400
    assert report.model.trainable_parameters == 4 * 512


def test_each_byte_is_in_one_module(report):
    rows = {row.name: row for row in report.modules}
    proj, lora = rows["model.layers.0.proj"], rows["model.layers.0.proj.lora_A"]
    assert (proj.class_name, proj.weight_bytes, proj.parameters) == ("Linear4bit", 2048 + 260, 4096)
    assert (lora.weight_bytes, lora.gradient_bytes, lora.optimizer_bytes) == (2048, 2048, 4100)
    assert rows["model.layers.0"].activation_bytes == rows["model.layers.0"].kept_bytes == 6656
    assert rows["model.layers.0"].output_bytes == 6400
    assert rows["lm_head"].activation_bytes == 40448
    assert rows[""].activation_bytes == 1024  # the tokens
    assert sum(row.kept_bytes for row in report.modules) == 54784  # all that forward keeps: what is alive at its end


def test_an_unknown_module_belongs_to_its_nearest_ancestor():
    facts = dataclasses.replace(make_facts(), modules=(ModuleFact(name="model", class_name="TinyModel"),))
    report = make_small_report(make_ledger(), facts)
    assert [row.name for row in report.modules] == ["", "model"]
    # model: embed 12800 + 2 * (2308 + 2 * 2048); the root: lm_head 12800
    assert [row.weight_bytes for row in report.modules] == [12800, 12800 + 2 * (2308 + 4096)]


def test_parameters_outside_the_gpu_are_counted_without_gpu_memory():
    facts = make_facts()
    moved = tuple(
        dataclasses.replace(fact, device="cpu") if fact.module == "lm_head" else fact for fact in facts.tensors
    )
    report = make_small_report(make_ledger(), dataclasses.replace(facts, tensors=moved))
    assert report.resident.weights == 30216 - 12800
    assert report.model.parameters == 23040
    assert sum(row.bytes for row in report.dtypes) == report.resident.weights + report.resident.adapters


@pytest.mark.parametrize(
    ("memory_bytes", "fits", "headroom"),
    [
        (0, None, None),
        (24 * GIB, True, 24 * GIB - SEGMENT - CONTEXT_BYTES),
        (SEGMENT + CONTEXT_BYTES, True, 0),
        (SEGMENT + CONTEXT_BYTES - 1, False, -1),
    ],
)
def test_fits(memory_bytes, fits, headroom):
    report = make_hand_made_report(memory_bytes)
    assert (report.fits, report.headroom_bytes) == (fits, headroom)


def test_a_request_that_failed_does_not_fit():
    index = next(i for i, each in enumerate(make_ledger().allocations) if each.op == "dequantize_4bit")
    failure = SimpleNamespace(tick=13, index=index, requested_bytes=20000)
    report = make_hand_made_report(24 * GIB, out_of_memory=failure)
    assert report.fits is False
    assert dataclasses.asdict(report.out_of_memory) == {
        "tick": 13,
        "requested_bytes": 20000,
        "phase": "forward",
        "step": 1,
        "module": "model.layers.1.proj",
        "op": "dequantize_4bit",
        "holder": "dequantised weights",
    }


def test_notes_of_the_recipe_and_of_later_stages_appear_once(report):
    assert report.notes == (*make_recipe().notes, *NOTES)
    ledger = make_ledger()
    again = make_small_report(ledger, notes=(*make_recipe().notes, *NOTES))
    assert again.notes == report.notes


def test_choices_keep_their_reason(report):
    choice = report.choices["optimizer.name"]
    assert (choice.value, choice.origin, choice.line) == ("adamw_torch", "config", 7)


def test_timeline_has_every_level_of_a_small_run_and_the_peak(report):
    ledger = make_ledger()
    assert [point.allocated_bytes for point in report.timeline] == [each.allocated_bytes for each in ledger.timeline]
    assert max(point.allocated_bytes for point in report.timeline) == report.peak.allocated_bytes


def test_a_long_timeline_is_reduced_and_keeps_the_peak():
    # 3000 blocks are allocated one after the other and then freed: the peak is a single moment of 6000.
    allocations = tuple(
        Allocation(nbytes=512, allocated_tick=tick, freed_tick=6000 - tick, phase="load", step=0)
        for tick in range(3000)
    )
    report = make_small_report(Ledger(allocations=allocations, marks=(), ticks=6001))
    assert len(report.timeline) <= 601
    assert max(point.allocated_bytes for point in report.timeline) == report.peak.allocated_bytes == 3000 * 512
    assert report.timeline[-1].allocated_bytes == 0


def test_the_caching_allocators_reservation_is_used():
    # Small requests are served from 2 MiB pages (`kSmallBuffer`). At most 152576 bytes are alive at once, so there is
    # always one page.
    ledger, recipe = make_ledger(), make_recipe(24 * GIB)
    reservation = replay(ledger, recipe.allocator, capacity_bytes=24 * GIB - CONTEXT_BYTES)
    report = make_report(recipe, make_facts(), ledger, reservation, notes=(), versions={}, elapsed_seconds={})
    assert report.peak.reserved_bytes == 2 << 20
    assert report.peak.counted_bytes == report.peak.allocated_bytes == reservation.peak_allocated_bytes
    assert [use.reserved_bytes for use in report.phases.values()] == [2 << 20] * 3
    assert (report.fits, report.out_of_memory) == (True, None)


def test_the_caching_allocators_failure_is_used():
    ledger, recipe = make_ledger(), make_recipe(CONTEXT_BYTES + 1)
    reservation = replay(ledger, recipe.allocator, capacity_bytes=1)
    report = make_report(recipe, make_facts(), ledger, reservation, notes=(), versions={}, elapsed_seconds={})
    assert report.fits is False
    assert (report.out_of_memory.requested_bytes, report.out_of_memory.module) == (12800, "model.embed")


def test_an_empty_recording_is_a_report():
    report = make_small_report(Ledger(allocations=(), marks=(), ticks=0))
    assert report.peak.allocated_bytes == report.buckets.total == 0
    assert report.timeline == ()
    assert str(report)
    assert report._repr_html_()


def test_micro_batches_share_a_phase():
    """The first micro-batch's backward reaches 512 + 1024; the second forward begins at 512 and reaches 512 + 512."""
    ledger = Ledger(
        allocations=(
            Allocation(nbytes=512, allocated_tick=0, phase="load", step=0, role="weight"),
            Allocation(nbytes=1024, allocated_tick=1, freed_tick=2, phase="backward", step=1, module="a"),
            Allocation(nbytes=512, allocated_tick=3, freed_tick=4, phase="forward", step=1),
        ),
        marks=(
            Mark(tick=0, phase="load", step=0),
            Mark(tick=1, phase="forward", step=1),
            Mark(tick=1, phase="backward", step=1),
            Mark(tick=3, phase="forward", step=1, micro_batch=1),
            Mark(tick=4, phase="backward", step=1, micro_batch=1),
        ),
        ticks=5,
    )
    parts = make_small_report(ledger).phases["step_1"].phases
    assert {name: use.allocated_bytes for name, use in parts.items()} == {"forward": 1024, "backward": 1536}


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("buckets", {"buckets": Buckets(weights=1)}),
        ("module weights", {"modules": ()}),
        ("dtypes", {"dtypes": ()}),
    ],
)
def test_sums_that_disagree_are_refused(report, table, change):
    with pytest.raises(AssertionError, match=table):
        assert_adds_up(dataclasses.replace(report, **change), make_ledger())
