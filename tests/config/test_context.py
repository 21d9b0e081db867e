"""How ranks share a row: what axolotl 0.21 chooses for `context_parallel_size`, and where it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rank_configs import make_rank_config
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.config.grown_mesh import grow_mesh
from axmem_trace.recipe.parallel import Context
from axmem_trace.recipe.recipe import Recipe

FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
STEPS = Context(ring=2, rotation="steps", head_tail=True)


def read(tmp_path: Path, *, kv_heads: int = 2, gpus: int = 0, nodes: int = 1, axolotl: str = "", **keys: Any) -> Recipe:
    """Four attention heads."""
    model = write_tiny_model("llama", tmp_path / "model", num_attention_heads=4, num_key_value_heads=kv_heads)
    config = make_rank_config(tmp_path, **{**FSDP2, "base_model": model, **keys})
    return read_recipe(config, hub="never", num_gpus=gpus, num_nodes=nodes, axolotl=axolotl)


@pytest.mark.parametrize(
    ("size", "kv_heads", "keys", "expected"),
    [
        (2, 2, {}, Context(heads=2)),
        (2, 1, {}, STEPS),  # one key-value head can't be shared
        (4, 2, {}, Context(heads=2, ring=2)),
        (4, 4, {}, Context(heads=4)),
        (2, 1, {"sample_packing": True}, Context(ring=2)),  # samples: all keys are gathered
        (2, 2, {"context_parallel": {"backend": "ring", "load_balance": "none"}}, Context(ring=2)),
        (2, 2, {"context_parallel": {"backend": "ring"}}, STEPS),
        (
            2,
            2,
            {"context_parallel": {"backend": "ring", "rotate_method": "alltoall"}},
            Context(ring=2, rotation="steps"),
        ),
        (2, 2, {"context_parallel": {"shard_in_collator": False}}, Context(heads=2, in_collator=False)),
        (
            2,
            2,
            {"pretraining_dataset": [{"path": "x", "type": "pretrain"}], "max_steps": 5},
            Context(heads=2, in_collator=False),
        ),
    ],
)
def test_heads_are_shared_as_far_as_they_go(
    tmp_path: Path, size: int, kv_heads: int, keys: dict[str, Any], expected: Context
) -> None:
    recipe = read(tmp_path, kv_heads=kv_heads, context_parallel_size=size, **keys)
    assert recipe.parallel.context == expected
    assert recipe.parallel.num_gpus == size
    assert not [note for note in recipe.notes if note.kind == "not_modelled"]


def test_the_block_has_the_size_too(tmp_path: Path) -> None:
    assert read(tmp_path, context_parallel={"size": 2}).parallel.context == Context(heads=2)


def test_heads_are_shared_inside_a_machine(tmp_path: Path) -> None:
    """Two GPUs in each of two machines: four can't exchange heads (ringmaster `mesh.py`, `intra_node_size`)."""
    recipe = read(tmp_path, kv_heads=4, context_parallel_size=4, gpus=2, nodes=2)
    assert recipe.parallel.context == Context(heads=2, ring=2)


def test_neighbours_exchange_heads() -> None:
    context = Context(heads=2, ring=2)
    assert [context.place_in_ring(rank) for rank in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"context_parallel": {"backend": "ulysses"}, "kv_heads": 1}, "can't share 1 key-value heads"),
        ({"attn_implementation": "sdpa", "kv_heads": 1}, "only with FlashAttention"),
        ({"rl": "dpo"}, "a loss that the model computes itself"),
        ({"context_parallel": {"load_balance": "head_tail"}}, "are for a ring"),
    ],
)
def test_runs_that_axolotl_stops_are_refused(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    recipe = read(tmp_path, context_parallel_size=2, **keys)
    assert any(reason in refusal.text for refusal in recipe.refusals)


@pytest.mark.parametrize(
    "keys",
    [
        {"axolotl": "0.19.0"},  # ring-flash-attn
        {"deepspeed": "deepspeed_configs/zero2.json", "fsdp_config": None, "fsdp_version": None},
        {"attn_implementation": "xformers"},
    ],
)
def test_what_is_not_modelled_says_so(tmp_path: Path, keys: dict[str, Any]) -> None:
    recipe = read(tmp_path, context_parallel_size=2, **keys)
    assert recipe.parallel.context == Context()
    notes = [note for note in recipe.notes if note.kind == "not_modelled" and note.key == "context_parallel_size"]
    assert [note.direction for note in notes] == ["less"]


def test_one_gpu_has_whole_rows(tmp_path: Path) -> None:
    assert read(tmp_path, context_parallel_size=2, gpus=1).parallel.context == Context()


@pytest.mark.parametrize(
    ("keys", "count", "expected"),
    [
        ({**FSDP2, "context_parallel_size": 2, "dp_shard_size": 4}, 4, ("dp_shard_size=2",)),
        ({**FSDP2, "context_parallel": {"size": 4}}, 16, ("dp_shard_size=4",)),
        ({**FSDP2, "context_parallel_size": 4}, 2, ()),  # too few: the reader says so
        ({**FSDP2, "dp_shard_size": 4, "dp_replicate_size": 2}, 16, ("dp_shard_size=8",)),
        ({"context_parallel_size": 2}, 8, ()),  # nothing shards
    ],
)
def test_shards_grow_with_the_number_of_gpus(keys: dict[str, Any], count: int, expected: tuple[str, ...]) -> None:
    assert grow_mesh(keys, (), count) == expected
