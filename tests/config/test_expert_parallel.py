"""Expert parallelism: what is sharded among how many ranks, and where axolotl stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rank_configs import make_rank_config

from axmem_trace import estimate
from axmem_trace.config import read_recipe
from axmem_trace.recipe.recipe import Recipe

FSDP2 = {"fsdp_version": 2, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}


def read(tmp_path: Path, family: str = "qwen3_moe", **keys: Any) -> Recipe:
    """Four experts."""
    return read_recipe(make_rank_config(tmp_path, family, **FSDP2, **keys), hub="never", axolotl="0.21.0")


@pytest.mark.parametrize(
    ("keys", "shards"),
    [({"expert_parallel_size": 2}, 2), ({"expert_parallel_size": 2, "dp_shard_size": 4}, 8)],
)
def test_all_ranks_of_a_copy_share_the_parameters(tmp_path: Path, keys: dict[str, int], shards: int) -> None:
    """Experts: half of them on each rank of the expert axis, and each half in as many parts as there are shards."""
    recipe = read(tmp_path, **keys)
    assert recipe.parallel.mesh.num_shards == recipe.parallel.num_gpus == shards
    notes = [note for note in recipe.notes if note.key == "expert_parallel_size"]
    assert [(note.kind, note.direction) for note in notes] == [("not_modelled", "either")]


@pytest.mark.parametrize(
    ("family", "size", "reason"), [("qwen3_moe", 3, "4 experts can't be divided"), ("llama", 2, "no experts")]
)
def test_experts_that_can_not_be_divided_are_refused(tmp_path: Path, family: str, size: int, reason: str) -> None:
    recipe = read(tmp_path, family, expert_parallel_size=size)
    assert any(reason in refusal.text for refusal in recipe.refusals)


def test_resident_memory_is_that_of_as_many_shards(tmp_path: Path) -> None:
    """Four experts in two halves are as many bytes as all parameters in two shards."""
    by_experts, by_shards = (
        estimate(
            make_rank_config(tmp_path, "qwen3_moe", **FSDP2, **keys), num_gpus=2, hub="never", axolotl="0.21.0"
        ).resident
        for keys in ({"expert_parallel_size": 2}, {"dp_shard_size": 2})
    )
    assert by_experts == by_shards
