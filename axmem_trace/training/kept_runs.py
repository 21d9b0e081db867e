"""Runs that are kept in this process. An estimate with other batches needs only one micro-batch of the kept model.

Only forward, backward and evaluation depend on the batches. So the kept model runs one micro-batch of the new batches,
with the libraries' own code. If the events are the same except for their sizes (`ledger/windows.py`), the result is the
kept ledger with the new sizes. Loading, later micro-batches, the optimizer and repeated layers are not traced again.
With any other difference (a kernel that is chosen by size, a mask for padded rows), the whole run is traced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from axmem_trace.folding.sections import LayerPass, Sections
from axmem_trace.folding.unfold import Unfolding
from axmem_trace.ledger import Ledger
from axmem_trace.ledger.windows import CannotReuse, allocated_in, find_sources, have_same_events
from axmem_trace.models.built import BuiltModel
from axmem_trace.models.warn import note_learned_positions
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.recipe.watched_gpu import WatchedGpu
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.training.checked_folds import without_tokens
from axmem_trace.training.failures import is_outside_this_package
from axmem_trace.training.optimizers.traced import TracedOptimizer
from axmem_trace.training.trace import Recording, record_batches

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from axmem_trace.training.traced_run import TracedRun

MOST_KEPT = 8
"""The number of models that are kept, the latest ones. Each needs a few megabytes."""
MOST_RUNS = 4
"""The number of runs that are kept for each model, the latest ones."""


@dataclass(frozen=True, slots=True)
class Unfolded:
    """How a short model's ledger was unfolded.

    Attributes:
        source: for each allocation of the result, the allocation of the short ledger.
        growth: the bytes that are added to allocations of the result, by position.
        periods: for each pass over the layers, the allocations of each period. They must have equal sizes.
        fixed: allocations of the short ledger whose sizes must not change, because they depend on the number of layers.
    """

    source: NDArray[np.int64]
    growth: dict[int, int]
    periods: tuple[NDArray[np.int64], ...]
    fixed: tuple[int, ...]


def describe_unfolding(unfolding: Unfolding, sections: Sections) -> Unfolded:
    """The data to unfold other sizes. `unfolding` must have made its ledger already."""
    import numpy as np

    passes = [
        np.array(
            [[event.number for event in events if event.kind == "allocate"] for events in item.periods], dtype=np.int64
        )
        for item in sections.items
        if isinstance(item, LayerPass)
    ]
    return Unfolded(unfolding.source, unfolding.added_bytes, tuple(passes), tuple(unfolding.growth))


@dataclass(kw_only=True)
class KeptRun:
    """A recorded run.

    Attributes:
        recipe: the recipe of the run.
        result: the result of `trace_run` for it.
        recorded: the recording of the traced model. It is the short model, if repeated layers were left out.
        unfolded: how the result's ledger was made from the recording; None: the recording's ledger is the result's
            ledger.
    """

    recipe: Recipe
    result: TracedRun
    recorded: Recording
    unfolded: Unfolded | None

    @property
    def ledger(self) -> Ledger:
        """The recorded ledger."""
        return self.recorded.ledger

    @cached_property
    def _sources(self) -> NDArray[np.intp]:
        return find_sources(self.ledger, self.recorded.windows)

    def with_batches(self, again: Recording) -> TracedRun:
        """The result with other batches. One micro-batch of them has been recorded.

        Raises:
            CannotReuse: not only sizes are different.
        """
        if not self.recorded.batch_notes <= set(again.own_notes) <= set(self.recorded.own_notes):
            raise CannotReuse("the notes depend on the batches")
        known, sources = self.ledger.columns.nbytes.copy(), self._sources
        for mine, theirs in zip(self.recorded.windows, again.windows, strict=True):
            if not have_same_events(self.ledger, mine, again.ledger, theirs):
                raise CannotReuse("other events")
            known[allocated_in(self.ledger, mine)] = again.ledger.columns.nbytes[allocated_in(again.ledger, theirs)]
        sizes = known.copy()
        depends = sources >= 0
        sizes[depends] = known[sources[depends]]
        return replace(self.result, ledger=self.result.ledger.with_sizes(self._unfold(sizes)))

    def _unfold(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.unfolded is None:
            return sizes
        for numbers in self.unfolded.periods:
            if (sizes[numbers] != sizes[numbers[0]]).any():
                raise CannotReuse("the sizes of repeated layers differ")
        fixed = list(self.unfolded.fixed)
        if (sizes[fixed] != self.ledger.columns.nbytes[fixed]).any():
            raise CannotReuse("a size depends on the batches and on the number of layers")
        whole = sizes[self.unfolded.source]
        for position, delta in self.unfolded.growth.items():
            whole[position] += delta
        return whole


@dataclass(kw_only=True)
class KeptModel:
    """The model of recorded runs, with all data to run a micro-batch again.

    Attributes:
        recipe: that of the runs, without fields about their batches; `rank`: the recorded rank.
        runs: one run for each different sequence of events (one row or several, padded or not), the latest last.
    """

    recipe: Recipe
    rank: int | None
    built: BuiltModel
    optimizer: TracedOptimizer
    recording: RecordingMode
    runs: list[KeptRun]

    def answer(self, recipe: Recipe) -> TracedRun:
        """The result with other batches.

        Raises:
            CannotReuse: no kept run has the same events.
        """
        again = record_batches(recipe, self.built, self.optimizer, self.recording, self.runs[-1].recorded.held)
        why: list[str] = []
        for run in reversed(self.runs):
            if _notes_on_positions(self.built, recipe) != _notes_on_positions(self.built, run.recipe):
                why.append("a note on the built model depends on the batches")
                continue
            try:
                return run.with_batches(again)
            except CannotReuse as reason:
                why.append(str(reason))
        raise CannotReuse("; ".join(why))


_kept: list[KeptModel] = []


def answer_from_kept(recipe: Recipe, rank: int | None) -> TracedRun | None:
    """The result of a run that differs from a kept run only in its batches; None: the run must be traced."""
    kept = _find(_without_batches(recipe), rank)
    if kept is None:
        return None
    try:
        return kept.answer(recipe)
    except CannotReuse:
        return None
    except Exception as error:  # if it also happens in the whole run, that run reports it
        _kept.remove(kept)
        if not is_outside_this_package(error):
            raise
        return None


def keep(
    run: KeptRun, rank: int | None, built: BuiltModel, optimizer: TracedOptimizer, recording: RecordingMode
) -> None:
    """Keeps a run and its model for later estimates. It is not kept if more than its passes may depend on the batches,
    or if the run has changed the model."""
    recipe = run.recipe
    changed = optimizer.replaces_parameters or optimizer.releases_gradients or bool(recipe.adapter.relora_steps)
    if changed or not run.recorded.is_reusable or isinstance(recipe.gpu, WatchedGpu):
        return
    known = _find(_without_batches(recipe), rank)
    runs: list[KeptRun] = []
    if known is not None:
        _kept.remove(known)
        runs = [each for each in known.runs if each.recorded.held == run.recorded.held][1 - MOST_RUNS :]
    _kept.append(
        KeptModel(
            recipe=_without_batches(recipe),
            rank=rank,
            built=built,
            optimizer=optimizer,
            recording=recording,
            runs=[*runs, run],
        )
    )
    del _kept[:-MOST_KEPT]


def _find(recipe: Recipe, rank: int | None) -> KeptModel | None:
    return next((each for each in _kept if each.rank == rank and each.recipe == recipe), None)


def _without_batches(recipe: Recipe) -> Recipe:
    """The recipe without the fields about its batches."""
    return replace(without_tokens(recipe), gpu=recipe.gpu)


def forget_kept() -> None:
    """Drops all kept models, as in a new process."""
    _kept.clear()


def _notes_on_positions(built: BuiltModel, recipe: Recipe) -> list[object]:
    """The notes on a built model that depend on the batches; no other notes do."""
    notes = Notes()
    note_learned_positions(built.module, recipe, notes)
    return list(notes)
