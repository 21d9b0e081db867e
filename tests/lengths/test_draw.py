"""Lengths drawn at random: they are the same for the same seed, rounded as in the collator, and the longest batch is
the last."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.lengths.draw import describe_lengths, draw_steps, longest_row
from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.recipe import Batch, Recipe

BATCH = Batch(rows=4, row_tokens=1000)
LONGEST = RowLengths(collation="longest", multiple=64)


def test_the_first_lengths_of_seed_0():
    """For seed 0, Python's generator returns 0.8444, 0.7580, 0.4206, 0.2589. Samples have 62 (a sixteenth of 1000) to
    1000 tokens. The longest of four is 62 * (1000 / 62) ** 0.8444 = 649; the next multiple of 64 is 704."""
    assert draw_steps(LONGEST, BATCH, 0, 2, 1)[0] == [704]


def test_the_same_seed_gives_the_same_and_another_gives_others():
    assert draw_steps(LONGEST, BATCH, 3, 9, 2) == draw_steps(LONGEST, BATCH, 3, 9, 2)
    assert draw_steps(LONGEST, BATCH, 3, 9, 2) != draw_steps(LONGEST, BATCH, 4, 9, 2)


def test_the_last_step_has_the_longest_batch():
    for seed in range(5):
        *_, last = draw_steps(LONGEST, BATCH, seed, 6, 2)
        assert max(last) == longest_row(LONGEST, BATCH) == 1000


def test_no_row_is_longer_than_it_may_be():
    rows = [row for step in draw_steps(LONGEST, BATCH, 1, 200, 1) for row in step]
    assert max(rows) == 1000
    assert all(row % 64 == 0 or row == 1000 for row in rows)
    assert min(rows) < 300


def test_known_samples():
    """Only the given lengths are used, the longest of each batch; 90 tokens are padded to 96."""
    lengths = RowLengths(collation="longest", multiple=8, samples=(10, 20, 90))
    rows = {row for step in draw_steps(lengths, Batch(rows=1, row_tokens=500), 0, 100, 1) for row in step}
    assert rows == {16, 24, 96}
    assert longest_row(lengths, Batch(rows=1, row_tokens=500)) == 96


def test_lengths_of_joined_samples_are_summed():
    lengths = RowLengths(collation="joined", samples=(10, 20))
    batch = Batch(rows=1, row_tokens=400, packed=True, samples_per_row=4)
    rows = {row for step in draw_steps(lengths, batch, 0, 60, 1) for row in step}
    assert rows == {40, 50, 60, 70, 80}


def test_packed_rows_are_nearly_full():
    lengths = RowLengths(collation="packed")
    rows = [row for step in draw_steps(lengths, Batch(row_tokens=1000, packed=True), 0, 50, 1) for row in step]
    assert min(rows) >= 900
    assert max(rows) == 1000


def read(tmp_path: Path, *assumptions: str, **changes) -> Recipe:
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 2,
        "sequence_len": 100,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-5,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **changes,
    }
    return read_recipe(config, assumptions=assumptions, hub="never")


@pytest.mark.parametrize(
    ("changes", "collation", "multiple"),
    [
        ({}, "longest", 64),  # causal.py `build`: pad_to_sequence_len is None
        ({"pad_to_multiple_of": 8}, "longest", 8),
        ({"pad_to_sequence_len": False}, "longest", 1),
        ({"pad_to_sequence_len": True}, "full", 1),
        ({"sample_packing": True}, "full", 1),  # validation.py `hint_sample_packing_padding`
        ({"sample_packing": True, "pad_to_sequence_len": False}, "packed", 1),
        ({"batch_flattening": True, "attn_implementation": "flash_attention_2"}, "joined", 1),
        ({"rl": "dpo", "datasets": [{"path": "x", "type": "chatml.intel"}]}, "longest", 1),
        ({"reward_model": True, "num_labels": 1}, "full", 1),  # `hint_reward_model_pad`
    ],
)
@pytest.mark.parametrize("release", ["0.19.0", "0.21.0"])
def test_how_axolotl_collates(tmp_path, changes, collation, multiple, release):
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 2,
        "sequence_len": 100,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-5,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **changes,
    }
    lengths = read_recipe(config, hub="never", axolotl=release).lengths
    assert (lengths.collation, lengths.multiple) == (collation, multiple)


def test_lengths_of_a_file(tmp_path):
    """axolotl drops samples longer than `sequence_len`; rows here are 128 tokens (the next multiple of 64)."""
    file = tmp_path / "lengths.txt"
    file.write_text("30\n7000\n128\n", encoding="utf-8")
    recipe = read(tmp_path, f"lengths={file}")
    assert recipe.lengths.samples == (30, 128)
    assert recipe.lengths.asked
    assert (
        describe_lengths(recipe.lengths, recipe.batch) == "the lengths in lengths.txt, 2 samples, 1 longer ones dropped"
    )


def test_a_range_and_a_list(tmp_path):
    ranged = read(tmp_path, "lengths=20-90").lengths
    assert (ranged.shortest, ranged.longest, ranged.known) == (20, 90, True)
    assert read(tmp_path, "lengths=[20, 90]").lengths.samples == (20, 90)
    assert read(tmp_path, "lengths=full").lengths.collation == "full"
    assert not read(tmp_path, "lengths=vary").lengths.known


@pytest.mark.parametrize(
    ("value", "says"),
    [("90-20", "two numbers"), ("5-900", "1 to 128"), ("missing.txt", "no such file"), ("[900]", "no length")],
)
def test_invalid_lengths(tmp_path, value, says):
    with pytest.raises(ConfigError, match=says):
        read(tmp_path, f"lengths={value}")


def test_rows_that_are_always_full_cannot_vary(tmp_path):
    with pytest.raises(ConfigError, match="full length"):
        read(tmp_path, "lengths=vary", pad_to_sequence_len=True)
