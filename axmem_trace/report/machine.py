"""Host memory of one machine in a run on several GPUs: the memory while its ranks load, and the memory that they
keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from axmem_trace.model_facts import ModelFacts
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.rank_types import MachineUse, RankUse

_ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


class _Loading(NamedTuple):
    """How many copies of the checkpoint are in a machine's host memory while its ranks load, and why."""

    copies: int
    why: str


def make_machine(
    recipe: Recipe, facts: ModelFacts, host_by_rank: Mapping[int, int], ranks: Sequence[RankUse]
) -> MachineUse | None:
    """The machine that needs the most; None on one GPU.

    Args:
        facts: those of rank 0. The weights of the whole model are counted.
        host_by_rank: `host_bytes` of every rank.
    """
    if not ranks:
        return None
    per_machine = recipe.parallel.num_gpus // recipe.parallel.num_nodes
    sums: dict[int, int] = {}
    for rank, nbytes in host_by_rank.items():
        sums[rank // per_machine] = sums.get(rank // per_machine, 0) + nbytes
    loading = _loading(recipe, per_machine)
    return MachineUse(
        gpus=per_machine,
        loading_bytes=loading.copies * _checkpoint_bytes(recipe, facts),
        held_bytes=max(sums.values(), default=0),
        why=loading.why,
    )


def _checkpoint_bytes(recipe: Recipe, facts: ModelFacts) -> int:
    """The base model's bytes in the dtype in which it is loaded; packed, if the packed weights are staged on the
    host."""
    weights = [fact for fact in facts.tensors if fact.role == "weight"]
    if not recipe.parallel.fsdp.stages_packed:
        return sum(fact.logical_elements for fact in weights) * _ITEMSIZES[recipe.precision.load_dtype]
    return sum(
        fact.nbytes * fact.whole_elements // fact.elements if fact.whole_elements else fact.nbytes
        for fact in weights
        if fact.elements
    )


def _loading(recipe: Recipe, per_machine: int) -> _Loading:
    """The number of copies, which depends on the engine. A mapped file counts once for a machine: its ranks share the
    system's page cache."""
    engine, fsdp = recipe.parallel.engine, recipe.parallel.fsdp
    packed = recipe.quantisation.method in ("bnb_4bit", "bnb_8bit")
    if engine in ("fsdp1", "fsdp2"):
        if fsdp.stages_packed:
            return _Loading(1, "rank 0 alone has the packed weights there (axolotl 0.21.0 loaders/nf4.py:171)")
        if fsdp.loads_on_host:
            return _Loading(
                1,
                "one rank of each machine has the weights there, the others none (axolotl 0.21.0 "
                "loaders/model.py:1309)",
            )
        if not packed:
            return _Loading(
                per_machine,
                "each rank has the whole model there before it goes to its GPU (axolotl 0.21.0 "
                "loaders/model.py:839); ranks share what is mapped from files",
            )
    if engine.startswith("zero") and not packed:
        how = "reads the whole checkpoint" if engine == "zero3" else "has the whole model before it goes to its GPU"
        return _Loading(per_machine, f"each rank {how} there; ranks share what is mapped from files")
    return _Loading(
        1,
        "files are mapped, and copied from there to the GPUs (transformers 5.20 core_model_loading.py "
        "`_materialize_copy`)",
    )
