"""The ranks of a run on several GPUs: which have equal shards, which needs the most memory, and what is sharded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby

from axmem_trace.allocator.reservation import Reservation
from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.ledger.allocation import ON_EACH_RANK
from axmem_trace.ledger.spans import most_alive, survey
from axmem_trace.model_facts import ModelFacts, TensorFact
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.holders import HolderNames
from axmem_trace.report.moments import make_moments
from axmem_trace.report.rank_types import Division, RankUse
from axmem_trace.report.types import Resident

NUM_RANK_MOMENTS = 40
"""Of each recorded rank other than 0: up to 16 of them differ."""
_SHARES_TRAINING = {
    "fsdp1": ("gradients", "optimizer"),
    "fsdp2": ("gradients", "optimizer"),
    "tensor": ("gradients", "optimizer"),
    "zero1": ("optimizer",),
    "zero2": ("gradients", "optimizer"),
    "zero3": ("gradients", "optimizer"),
}
"""By engine, what is sharded in addition to the parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRun:
    """Ranks with shards of equal sizes, and the recorded run of one of them.

    Attributes:
        ranks: in order.
        recorded: False: the run is that of the recorded rank that needs the most.
    """

    ranks: tuple[int, ...]
    ledger: Ledger
    reservation: Reservation
    recorded: bool = True


def make_ranks(recipe: Recipe, runs: Sequence[RankRun], *, names: HolderNames | None = None) -> tuple[RankUse, ...]:
    """One row for each group of ranks; the group of rank 0 is the first. Empty on one GPU.

    Args:
        names: those of the model, to describe moments of recorded ranks other than 0; None: without moments.
    """
    if recipe.parallel.num_gpus < 2:
        return ()
    uses = [_make_use(recipe, run) for run in runs]
    if names is not None:
        for index, run in enumerate(runs):
            if index and run.recorded:
                moments = make_moments(run.ledger, run.reservation, names, number=NUM_RANK_MOMENTS)
                uses[index] = replace(uses[index], moments=moments)
    most = max((use.device_bytes for use in uses), default=0)
    worst = next((index for index, use in enumerate(uses) if use.device_bytes == most), -1)
    return tuple(replace(use, worst=index == worst) for index, use in enumerate(uses))


def _make_use(recipe: Recipe, run: RankRun) -> RankUse:
    span, reservation = survey(run.ledger).peak, run.reservation
    allocated = max(span.peak_bytes, 0)
    counted = max(reservation.peak_allocated_bytes, allocated)
    return RankUse(
        ranks=name_ranks(run.ranks),
        count=len(run.ranks),
        basis="recorded" if run.recorded else "at most",
        allocated_bytes=allocated,
        active_bytes=max(reservation.peak_active_bytes, counted),
        counted_bytes=counted,
        reserved_bytes=reservation.peak_reserved_bytes,
        device_bytes=reservation.peak_reserved_bytes + recipe.gpu.outside_bytes,
        phase=span.phase,
        step=span.step,
        host_bytes=_host_bytes(run.ledger),
    )


def host_by_rank(recipe: Recipe, runs: Sequence[RankRun]) -> dict[int, int]:
    """The most host memory of each rank at any time. What rank 0 collects in host memory to save it does not count on other
    ranks, except with ZeRO-1 and 2."""
    all_save = recipe.parallel.engine in ("zero1", "zero2")
    found: dict[int, int] = {}
    for run in runs:
        first, others = _host_bytes(run.ledger), _host_bytes(run.ledger, saves=all_save)
        found.update((rank, others if rank else first) for rank in run.ranks)
    return found


def _host_bytes(ledger: Ledger, *, saves: bool = True) -> int:
    columns = ledger.columns

    def counts(kind: Allocation) -> bool:
        return kind.device == "cpu" and (saves or kind.phase != "save" or kind.op.startswith(ON_EACH_RANK))

    return most_alive(columns, columns.where(counts))[0]


def name_ranks(ranks: Sequence[int]) -> str:
    """The numbers in order; consecutive numbers are written as ranges.

    >>> name_ranks([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    spans = [[rank for _, rank in found] for _, found in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def make_division(recipe: Recipe, facts: ModelFacts, ledger: Ledger, resident: Resident) -> tuple[Division, ...]:
    """What is sharded, what each rank has in full, and what is gathered for a short time. Empty on one GPU."""
    if recipe.parallel.num_gpus < 2:
        return ()
    columns = ledger.columns
    gathered, _ = most_alive(columns, columns.where(lambda kind: kind.device == "gpu" and kind.role == "gathered"))
    return tuple(
        row
        for row in _rows(recipe, facts, resident, gathered)
        if row.sharded_bytes or row.replicated_bytes or row.gathered_bytes
    )


def _rows(recipe: Recipe, facts: ModelFacts, resident: Resident, gathered: int) -> Iterator[Division]:
    on_gpu = [fact for fact in facts.tensors if fact.device == "gpu"]
    for name, role in (("weights", "weight"), ("adapters", "adapter")):
        sharded = sum(fact.nbytes for fact in on_gpu if fact.role == role and fact.division == "sharded")
        replicated = sum(fact.nbytes for fact in on_gpu if fact.role == role) - sharded
        yield Division(name=name, sharded_bytes=sharded, replicated_bytes=replicated)
    for name in ("gradients", "optimizer"):
        nbytes = getattr(resident, name)
        shares = name in _SHARES_TRAINING.get(recipe.parallel.engine, ())
        sharded = int(nbytes * _trained_share(recipe, on_gpu)) if shares else 0
        yield Division(name=name, sharded_bytes=sharded, replicated_bytes=nbytes - sharded)
    yield Division(name="gathered parameters", gathered_bytes=gathered)


def _trained_share(recipe: Recipe, facts: Sequence[TensorFact]) -> Fraction:
    """The sharded share of the bytes that a rank trains: all bytes, except tensors that tensor parallelism does not
    shard."""
    trained = sum(fact.nbytes for fact in facts if fact.trainable)
    if recipe.parallel.engine != "tensor" or not trained:
        return Fraction(1)
    return Fraction(sum(fact.nbytes for fact in facts if fact.trainable and fact.division == "sharded"), trained)
