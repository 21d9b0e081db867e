"""FSDP1's other ranks, whose optimizer's steps are recorded with those of one rank: each ledger is the one that a trace of
that rank alone has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rank_configs import make_rank_config

from axmem_trace.config import read_recipe
from axmem_trace.ledger import NEVER, Allocation, Ledger, Mark
from axmem_trace.ledger.alternatives import NotApart, leave_out
from axmem_trace.ledger.windows import Window
from axmem_trace.training.layer_folding import trace_run

FSDP1 = {"fsdp_version": 1, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
ON_HOST = {"fsdp_version": 1, "fsdp_config": {"cpu_ram_efficient_loading": True}}
FOREACH = ("optimizer_implementation=foreach",)
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "full": (FSDP1, ()),
    "foreach": ({**FSDP1, "optimizer": "adamw_torch"}, FOREACH),
    "accumulating": ({**FSDP1, "gradient_accumulation_steps": 3}, ()),
    "8-bit states": ({**FSDP1, "optimizer": "adamw_bnb_8bit"}, ()),
    "evaluation, prefetch": ({**FSDP1, "val_set_size": 0.1}, ("fsdp_prefetch=pre", *FOREACH)),
    "one rank reads": (ON_HOST, FOREACH),
}


def events_of(ledger: Ledger) -> list[tuple[Any, ...]]:
    """All that happened on the GPU, in order; ticks are counted among these. Modules are left out: a flat shard is listed
    under the first parameter in it, which is another one on each rank."""
    on_gpu = [each for each in ledger.on_gpu if not _is_placeholder(each)]
    ticks = {mark.tick for mark in ledger.marks} | {each.allocated_tick for each in on_gpu}
    ticks |= {each.freed_tick for each in on_gpu} | {each.busy_until for each in on_gpu}
    number = {tick: index for index, tick in enumerate(sorted(ticks))}
    found = [
        (
            *(number[tick] if tick != NEVER else NEVER for tick in (each.allocated_tick, each.freed_tick)),
            number[each.busy_until],
            *(each.nbytes, each.op, each.role, each.phase, each.step, each.stream),
        )
        for each in on_gpu
    ]
    return [*found, *((number[mark.tick], mark.phase, mark.step, mark.micro_batch) for mark in ledger.marks)]


def _is_placeholder(each: Allocation) -> bool:
    """Before the last micro-batch a gradient is replaced as soon as it is allocated, unit by unit
    (`_use_sharded_grad_views`): other parameters on each rank, of the same bytes for each unit."""
    return (
        each.phase == "backward" and each.op == "aten.empty_like.default" and each.freed_tick - each.allocated_tick == 1
    )


@pytest.mark.parametrize("name", CASES)
def test_another_rank_s_ledger_is_that_of_its_own_trace(name: str, tmp_path: Path) -> None:
    keys, assumptions = CASES[name]
    config = make_rank_config(tmp_path, **keys)
    recipe = read_recipe(config, num_gpus=4, assumptions=assumptions, axolotl="0.19.0", hub="never")
    whole = trace_run(recipe, rank=1)
    ranks = [group.ranks[0] for group in whole.groups if 1 not in group.ranks]
    assert sorted(whole.other_ranks) == ranks
    assert len(ranks) > 1
    for rank, ledger in whole.other_ranks.items():
        assert events_of(ledger) == events_of(trace_run(recipe, rank=rank).ledger)
    assert events_of(whole.ledger) != events_of(whole.other_ranks[ranks[-1]])


def test_an_optimizer_that_does_more_has_no_other_ranks(tmp_path: Path) -> None:
    """Adagrad's states exist before the first step."""
    config = make_rank_config(tmp_path, **FSDP1, optimizer="adagrad")
    run = trace_run(read_recipe(config, num_gpus=4, axolotl="0.19.0", hub="never"))
    assert not run.other_ranks
    assert [group.recorded for group in run.groups] == [True, True, False, True]


def test_flat_parameters_make_all_ranks_alike(tmp_path: Path) -> None:
    config = make_rank_config(
        tmp_path, fsdp_version=1, fsdp_config={"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "use_orig_params": False}
    )
    run = trace_run(read_recipe(config, num_gpus=4, axolotl="0.19.0", hub="never"))
    assert [group.ranks for group in run.groups] == [(0, 1, 2, 3)]


def test_parts_of_one_recording_are_left_out() -> None:
    """Ticks 3 to 6 are another rank's: its allocation is removed, and later ticks move up by 4."""
    ledger = Ledger(
        allocations=(
            Allocation(nbytes=1, allocated_tick=1, freed_tick=8),
            Allocation(nbytes=2, allocated_tick=3, freed_tick=5),
            Allocation(nbytes=3, allocated_tick=4, freed_tick=9),
            Allocation(nbytes=4, allocated_tick=7, busy_until=10),
        ),
        marks=(Mark(tick=2, phase="optimizer", step=1),),
        ticks=11,
    )
    left = leave_out(ledger, [Window(2, 6)])
    assert [(each.nbytes, each.allocated_tick, each.freed_tick, each.busy_until) for each in left.allocations] == [
        (1, 1, 4, 0),
        (4, 3, NEVER, 6),
    ]
    assert (left.marks, left.ticks) == (ledger.marks, 7)
    with pytest.raises(NotApart, match="of the rest is freed"):
        leave_out(ledger, [Window(6, 8)])
