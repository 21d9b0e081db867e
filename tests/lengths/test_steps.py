"""Many steps with other lengths, compared with arithmetic by hand and with recordings of real runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.imports import import_libraries
from axmem_trace.ledger import NEVER, Allocation, Ledger, Mark
from axmem_trace.lengths.laws import DifferentEvents, find_laws
from axmem_trace.lengths.simulate import with_row_tokens
from axmem_trace.lengths.steps import count_micro_batches, make_steps
from axmem_trace.recipe.recipe import Allocator, Recipe


def hand_made(tokens: int, *, left: str = "batch") -> Ledger:
    """Weights; then two steps with activations and a batch, which is alive until the next batch is allocated; then
    evaluation."""

    def life(nbytes: int, start: int, end: int, op: str) -> Allocation:
        return Allocation(nbytes=nbytes, allocated_tick=start, freed_tick=end, op=op)

    return Ledger(
        allocations=[
            life(1000, 1, NEVER, "weights"),
            life(8 * tokens, 3, 7, "batch"),
            life(100 * tokens, 4, 5, "activations"),
            life(8 * tokens, 6, NEVER, left),
            life(100 * tokens, 8, 9, "activations"),
            life(50, 11, 12, "evaluation"),
        ],
        marks=(
            Mark(tick=0, phase="load", step=0),
            Mark(tick=3, phase="forward", step=1),
            Mark(tick=6, phase="forward", step=2),
            Mark(tick=10, phase="eval", step=0),
        ),
        ticks=13,
    )


def test_four_steps_by_hand():
    """A step takes 4 ticks (6 to 9). Its batch is freed one tick after the next batch is allocated."""
    laws = find_laws({tokens: hand_made(tokens) for tokens in (10, 20, 40)})
    whole = make_steps(hand_made(40), laws, [[40], [10], [20], [30]], Allocator())
    found = [(each.op, each.nbytes, each.allocated_tick, each.freed_tick) for each in whole.allocations]
    assert found == [
        ("weights", 1000, 1, NEVER),
        ("batch", 320, 3, 7),
        ("activations", 4000, 4, 5),
        ("batch", 80, 6, 11),
        ("activations", 1000, 8, 9),
        ("batch", 160, 10, 15),
        ("activations", 2000, 12, 13),
        ("batch", 240, 14, NEVER),
        ("activations", 3000, 16, 17),
        ("evaluation", 50, 19, 20),
    ]
    assert [(mark.tick, mark.step) for mark in whole.marks] == [(0, 0), (3, 1), (6, 2), (10, 3), (14, 4), (18, 0)]
    assert whole.ticks == 13 + 2 * 4


def test_a_second_step_that_keeps_other_tensors_is_refused():
    traces = {tokens: hand_made(tokens, left="something else") for tokens in (10, 20, 40)}
    with pytest.raises(DifferentEvents, match="other tensors"):
        make_steps(traces[40], find_laws(traces), [[40], [10], [20]], Allocator())


def test_the_cache_is_emptied_in_every_third_step():
    """`gc_steps: 3` with seven steps: the cache is emptied at the end of the third and the sixth step (ticks 14 and
    26), and before evaluation at 30."""
    laws = find_laws({tokens: hand_made(tokens) for tokens in (10, 20, 40)})
    whole = make_steps(hand_made(40), laws, [[40]] * 7, Allocator(collect_steps=3))
    assert whole.empty_cache_ticks == (14, 26, 30)


CASES: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "gradient_checkpointing": True},
    "full": {"optimizer": "adamw_torch", "gradient_checkpointing": False},
    "eager": {"attn_implementation": "eager", "gradient_checkpointing": True},
    "emptied": {"torch_empty_cache_steps": 2, "gc_steps": 2},
    "fsdp2": {"fsdp_version": 2, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}},
}  # fmt: skip
LENGTHS = [[128, 64], [64, 192], [256, 128], [192, 320], [64, 64]]


@pytest.mark.parametrize("name", CASES)
def test_a_real_run_with_such_batches_has_the_same_allocations(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps of two micro-batches with different lengths: recorded in a real run; and the same steps made from two
    recorded steps of full rows and the laws of their sizes."""
    import_libraries()
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama", max_position_embeddings=512),
        "micro_batch_size": 2,
        "sequence_len": 320,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-5,
        "val_set_size": 0.1,
        "evals_per_epoch": 2,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "bf16": True,
        "attn_implementation": "flash_attention_2",
        **CASES[name],
    }
    recipe = read_recipe(config, hub="never", gpu="H100", num_gpus=2 if name == "fsdp2" else 0)
    traces = {tokens: trace(with_row_tokens(recipe, tokens)) for tokens in (64, 128, 192, 320)}
    laws = find_laws(traces)
    assert laws.num_jumps == 0
    assert count_micro_batches(traces[320]) == 2
    made = make_steps(traces[320], laws, LENGTHS, recipe.allocator)
    ran = run_steps(recipe, monkeypatch)
    assert made.columns.nbytes.tolist() == ran.columns.nbytes.tolist()
    assert order_of(made) == order_of(ran)


def order_of(ledger: Ledger) -> tuple[list[Any], list[Any], list[int]]:
    """Allocations and frees in order; and the positions among them at which each phase begins and the cache is emptied.
    (Ticks may have gaps.)"""
    ticks, indices, frees = ledger.moved
    marks = [(mark.phase, mark.step, mark.micro_batch, int(ticks.searchsorted(mark.tick))) for mark in ledger.marks]
    moves = list(zip(indices.tolist(), frees.tolist(), strict=True))
    return moves, marks, [int(ticks.searchsorted(tick)) for tick in ledger.empty_cache_ticks]


def trace(recipe: Recipe) -> Ledger:
    from axmem_trace.training.layer_folding import trace_run

    return trace_run(replace(recipe, fold=False)).ledger


def run_steps(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Runs a real step for each of `LENGTHS`. Nothing is repeated in the record."""
    from axmem_trace.training import run
    from axmem_trace.training.objectives.supervised import Supervised

    steps = iter(LENGTHS)
    one = Supervised.batches

    def batches(objective: Supervised, recipe: Recipe) -> list[Any]:
        return [one(objective, with_row_tokens(recipe, tokens))[0] for tokens in next(steps)]

    def never_repeat(self: run.Run, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **{**options, "repeat": False})

    start = run.Run.__init__
    monkeypatch.setattr(run, "NUM_STEPS", len(LENGTHS))
    monkeypatch.setattr(run.Run, "__init__", never_repeat)
    monkeypatch.setattr(Supervised, "batches", batches)
    return trace(recipe)
