"""`TracedRun`: the result of the trace of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from axmem_trace.ledger import Ledger
from axmem_trace.model_facts import ModelFacts
from axmem_trace.notes import Note
from axmem_trace.parallel.ranks import RankGroup


@dataclass(frozen=True, slots=True)
class TracedRun:
    """The result for a run: the facts of the model, the ledger, and the notes."""

    facts: ModelFacts
    ledger: Ledger
    notes: tuple[Note, ...]
    not_folded: str = ""
    """The reason why every layer was traced; empty if repeated layers were traced once."""
    groups: tuple[RankGroup, ...] = ()
    """On several GPUs: the groups of ranks whose shards have equal sizes."""
    other_ranks: Mapping[int, Ledger] = field(default_factory=dict)
    """Ledgers of other ranks that were recorded with this one, by rank."""
