"""Runs that are kept in this process: a question with other batches is answered by one micro-batch of the kept model.

Nothing but forward, backward and evaluation depends on the batches. So the kept model runs a micro-batch with the new ones,
with the libraries' own code. If it does exactly what it did before, in other sizes (`ledger/windows.py`), the kept ledger
with these sizes is the answer: loading, later micro-batches, the optimizer and repeated layers are not traced again. With
any difference (a kernel chosen by size, a mask for padded rows) the whole run is traced.
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

MOST_KEPT = 4
"""Models, the latest ones; each takes a few megabytes."""
MOST_RUNS = 4
"""Of each model, the latest ones."""


@dataclass(frozen=True, slots=True)
class Unfolded:
    """How a short model's ledger was unfolded.

    Attributes:
        source: for each allocation of the result, that of the short ledger.
        growth: bytes to add to allocations of the result, by position.
        periods: for each pass over the layers, the allocations of each period: they must have equal sizes.
        fixed: allocations of the short ledger whose sizes must stay, since they depend on the number of layers.
    """

    source: NDArray[np.int64]
    growth: dict[int, int]
    periods: tuple[NDArray[np.int64], ...]
    fixed: tuple[int, ...]


def describe_unfolding(unfolding: Unfolding, sections: Sections) -> Unfolded:
    """What is needed to unfold other sizes; `unfolding` has made its ledger."""
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
        recipe: of the run.
        result: what `trace_run` returned for it.
        recorded: of the model that was traced: of the short one, if repeated layers were left out.
        unfolded: how the result's ledger was made from it; None: it is the result's.
    """

    recipe: Recipe
    result: TracedRun
    recorded: Recording
    unfolded: Unfolded | None

    @property
    def ledger(self) -> Ledger:
        """What was recorded."""
        return self.recorded.ledger

    @cached_property
    def _sources(self) -> NDArray[np.intp]:
        return find_sources(self.ledger, self.recorded.windows)

    def with_batches(self, again: Recording) -> TracedRun:
        """The result with other batches, of which one micro-batch has been recorded.

        Raises:
            CannotReuse: something but sizes is different.
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
    """The model of recorded runs, with all that is needed to run a micro-batch again.

    Attributes:
        recipe: of the runs, without what is about their batches; `rank`: which one was recorded.
        runs: those with different events (one row or several, padded or not), the latest last.
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
            CannotReuse: no run had such events.
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
    """The result of a run like a kept one with other batches; None: it has to be traced."""
    kept = _find(_without_batches(recipe), rank)
    if kept is None:
        return None
    try:
        return kept.answer(recipe)
    except CannotReuse:
        return None
    except Exception as error:  # if it happens in the whole run too, that reports it
        _kept.remove(kept)
        if not is_outside_this_package(error):
            raise
        return None


def keep(
    run: KeptRun, rank: int | None, built: BuiltModel, optimizer: TracedOptimizer, recording: RecordingMode
) -> None:
    """Keeps a run and its model for later questions, unless more than its passes may depend on the batches, or the run has
    changed the model."""
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
    """The recipe without what is about its batches."""
    return replace(without_tokens(recipe), gpu=recipe.gpu)


def forget_kept() -> None:
    """As in a new process."""
    _kept.clear()


def _notes_on_positions(built: BuiltModel, recipe: Recipe) -> list[object]:
    """The only notes on a built model that depend on the batches."""
    notes = Notes()
    note_learned_positions(built.module, recipe, notes)
    return list(notes)
