"""The largest micro batch of a card equals that of recorded runs, and the next larger one does not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.folded_runs import LORA, make_config

from axmem_trace.__main__ import main
from axmem_trace.advice.largest_batch import MAX_MICRO_BATCH, BatchSearch
from axmem_trace.allocator import replay
from axmem_trace.catalogue import gpus
from axmem_trace.catalogue.gpus import list_usual_cards
from axmem_trace.config import read_recipe
from axmem_trace.estimation import record_ledgers
from axmem_trace.ledger import Ledger
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.shared_traces import traces_shared
from axmem_trace.units import GIB

pytestmark = pytest.mark.usefixtures("short_models_fold")

RUNS: dict[str, tuple[dict[str, Any], int]] = {
    "one row": ({**LORA, "micro_batch_size": 1}, 1),
    "ddp, without expandable segments": ({**LORA, "micro_batch_size": 2, "gradient_checkpointing": False}, 2),
}
MEMORY = (int(1.7 * GIB), int(3.3 * GIB))


@pytest.mark.parametrize("name", RUNS)
def test_recorded_runs_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "without" in name:
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:False")
    keys, num_gpus = RUNS[name]
    config = make_config(tmp_path, "model", {"sequence_len": 1024, "model": {"vocab_size": 8192}, **keys})

    def recipe_with(rows: int) -> Recipe:
        overrides = {"micro_batch_size": rows} if rows else {}
        return read_recipe(config, hub="never", gpu="24GiB", num_gpus=num_gpus, overrides=overrides)

    def record(rows: int) -> Sequence[Ledger]:
        return record_ledgers(recipe_with(rows))

    def fits(rows: int, recipe: Recipe) -> bool:
        """Whether the report for this number of rows says that it fits."""
        capacity_bytes = recipe.gpu.memory_bytes - recipe.gpu.outside_bytes
        reservations = [replay(ledger, recipe.allocator, capacity_bytes=capacity_bytes) for ledger in record(rows)]
        return all(each.out_of_memory is None for each in reservations)

    recipe = recipe_with(0)
    with traces_shared():
        search = BatchSearch(record, config["micro_batch_size"])
        for memory_bytes in MEMORY:
            on_card = replace(recipe, gpu=replace(recipe.gpu, memory_bytes=memory_bytes))
            found = search.largest(on_card)
            assert found is not None
            assert 0 < found.value < MAX_MICRO_BATCH
            assert fits(found.value, on_card)
            assert not fits(found.value + 1, on_card)
        sure = search.largest(on_card, recorded=True)
        assert sure is not None
        assert (sure.value, sure.recorded) == (found.value, True)


def test_even_one_row_does_not_fit(tmp_path: Path) -> None:
    config = make_config(tmp_path, "model", {"model": {"vocab_size": 8192}})
    recipe = read_recipe(config, hub="never", gpu="24GiB")
    tiny = replace(recipe, gpu=replace(recipe.gpu, memory_bytes=recipe.gpu.outside_bytes + (4 << 20)))
    with traces_shared():
        found = BatchSearch(
            lambda rows: record_ledgers(read_recipe(config, hub="never", overrides={"micro_batch_size": rows})), 1
        ).largest(tiny)
    assert found is not None
    assert found.value == 0


def test_each_card_that_is_shown_has_its_largest_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest cards that fit. All numbers of GPUs with DDP share their traces. The marked card is recorded."""
    config = make_config(tmp_path, "model", {**LORA, "sequence_len": 8192, "model": {"vocab_size": 128000}})
    path = tmp_path / "run.yml"
    path.write_text(json.dumps(config))
    cards = [each for each in list_usual_cards() if each.name in ("RTX 4090", "A100-80GB")]
    monkeypatch.setattr(gpus, "list_usual_cards", lambda: cards)
    assert main(["gpus", str(path), "--counts", "1,2,4", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["gpus"] for row in rows} == {1, 2, 4}
    found = [row for row in rows if row["largest_micro_batch"] is not None]
    assert len(found) == 3 * 2
    marked = {row["gpus"]: row for row in found if row["largest_is_recorded"]}
    assert 0 < marked[2]["largest_micro_batch"] <= marked[1]["largest_micro_batch"] < MAX_MICRO_BATCH
    assert {**marked[4], "gpus": 2} == marked[2]
    assert min(row["memory_bytes"] for row in rows if row["fits"]) == marked[1]["memory_bytes"]
