"""`trace_run`: makes facts, ledger and notes from a recipe. Repeated layers are traced once if they are equal.

1. The full model is made and its layers are compared (`models/repeated_layers.py`), then layers are removed.
2. The short model's recording is divided (`folding/sections.py`): its repeated layers must have the same allocations.
3. A model with one period less is recorded too. The recording must be equal to the prediction, event by event. Facts
   and notes of both models must be equal. Other numbers of tokens need no second check (`checked_folds.py`).
4. The missing periods are inserted (`folding/unfold.py`).
5. The short model is kept. For other batches, one micro-batch of it is enough (`kept_runs.py`).

If anything could make layers different, all layers are traced. They are also traced if the model or a library fails in
a short model. An error in this package's own code is not caught, because the trace of all layers would hide it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from axmem_trace.folding.refuse_recipe import refuse_recipe
from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.folding.sections import Sections, find_sections
from axmem_trace.folding.unfold import Unfolding, growing_sizes
from axmem_trace.ledger import Ledger
from axmem_trace.model_facts import ModelFacts
from axmem_trace.models.built import BuiltModel
from axmem_trace.models.layer_folding import Folding, NoFolding
from axmem_trace.models.skeleton.skeleton import AttentionRefused
from axmem_trace.notes import Note, RefusalNote
from axmem_trace.parallel.install import open_ranks
from axmem_trace.parallel.ranks import RankGroup
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.training.checked_folds import (
    CheckedFold,
    growth_without_check,
    known_growth,
    positions_that_may_grow,
    remember,
)
from axmem_trace.training.failures import is_outside_this_package
from axmem_trace.training.kept_runs import KeptRun, Unfolded, answer_from_kept, describe_unfolding, keep
from axmem_trace.training.loading import load_models
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.optimizers.traced import TracedOptimizer
from axmem_trace.training.trace import Recording, make_recording, record_run
from axmem_trace.training.traced_run import TracedRun

GROW_WITH_DEPTH = (
    "aten.stack.default",
    "aten._foreach_norm.Scalar",
    "aten.pow.Tensor_Scalar",
    "_c10d_functional.all_reduce.default",
    "_c10d_functional._wrap_tensor_autograd.default",
)
"""Operators of clipping whose size depends on the number of gradients: the stack of their norms, the partial norms that a
multi-tensor kernel writes first, and, among many ranks, the sum of the squared norms of all parts. No other size depends
on the number of layers."""


def trace_run(
    recipe: Recipe, start: Callable[[str, str], None] = lambda stage, text: None, *, rank: int | None = None
) -> TracedRun:
    """Builds the model and traces its run on meta.

    A model that does not support the recipe's attention kernel can't be trained with it. This is reported as a refusal,
    and the trace uses `sdpa`, or `eager` if the model does not support `sdpa`.

    Args:
        start: called with each stage (`build`, `trace`) as it begins, and a text for the user.
        rank: the rank to record of a run on several GPUs; None: the rank that needs the most memory if it is known,
            else rank 0.

    Raises:
        ConfigError: the model can't be built, or the run can't be traced, as the recipe says.
    """
    try:
        return _trace_as_asked(recipe, start, rank)
    except AttentionRefused as error:
        refused = error
    for kernel in ("sdpa", "eager"):
        attention = replace(recipe.attention, kernel=kernel, gemma4_hybrid=False)
        try:
            run = _trace_as_asked(replace(recipe, attention=attention), start, rank)
        except AttentionRefused:
            continue
        return replace(run, notes=(_refusal(refused, kernel), *run.notes))
    raise refused


def _refusal(refused: AttentionRefused, kernel: str) -> RefusalNote:
    why = "; ".join((refused.problem, *refused.details))
    return RefusalNote(key=refused.key, text=f"{why} (the figures are with `{kernel}`)", remedy=refused.remedy)


def _trace_as_asked(recipe: Recipe, start: Callable[[str, str], None], rank: int | None) -> TracedRun:
    why = "--assume fold=false"
    if recipe.fold:
        start("trace", "tracing")
        known = answer_from_kept(recipe, rank)
        if known is not None:
            return known
        try:
            return _trace_folded(recipe, start, rank)
        except AttentionRefused:
            raise
        except CannotFold as reason:
            why = str(reason)
        except Exception as error:  # an error of the whole model is reported for the whole model, below
            if not is_outside_this_package(error):
                raise
            why = f"{type(error).__name__} in a short model: {error}"
    part = _trace(recipe, NoFolding(), start, rank)
    run = TracedRun(part.facts, part.recorded.ledger, part.notes, why, part.groups, part.recorded.other_ranks)
    if recipe.fold:
        _keep(recipe, rank, part, run, None)
    return run


def _keep(recipe: Recipe, rank: int | None, part: _Part, result: TracedRun, unfolded: Unfolded | None) -> None:
    if not part.groups:
        run = KeptRun(recipe=recipe, result=result, recorded=part.recorded, unfolded=unfolded)
        keep(run, rank, part.built, part.optimizer, part.recording)


@dataclass(frozen=True, slots=True)
class _Part:
    """A traced model, whole or short."""

    built: BuiltModel
    optimizer: TracedOptimizer
    recording: RecordingMode
    recorded: Recording
    facts: ModelFacts
    groups: tuple[RankGroup, ...]

    @property
    def ledger(self) -> Ledger:
        """The ledger of the recording."""
        return self.recorded.ledger

    @property
    def notes(self) -> tuple[Note, ...]:
        """The notes on the model, the optimizer and the run."""
        return (*self.built.notes, *self.optimizer.notes, *self.recorded.notes)


def _trace(recipe: Recipe, folding: Folding, start: Callable[[str, str], None], rank: int | None) -> _Part:
    start("build", f"building {recipe.model.base.name}")
    recording = make_recording(recipe)
    with open_ranks(recipe, recording, rank=rank) as divide:
        built = load_models(recipe, recording, folding)
        rank_model = divide(built)
        optimizer = build_optimizer(recipe, built.module)
        if rank_model is not None and rank_model.with_optimizer is not None:
            rank_model = rank_model.with_optimizer(rank_model, optimizer)
        start("trace", "tracing")
        traced = record_run(
            recipe,
            built,
            optimizer,
            recording=recording,
            rank_model=rank_model,
            progress=lambda text: start("trace", text),
        )
    facts = folding.complete(rank_model.facts) if rank_model is not None else built.whole_facts
    groups = rank_model.groups if rank_model is not None else ()
    return _Part(built, optimizer, recording, traced, facts, groups)


def _trace_folded(recipe: Recipe, start: Callable[[str, str], None], rank: int | None) -> TracedRun:
    refuse_recipe(recipe)
    folding = Folding(recipe)
    part = _trace(recipe, folding, start, rank)
    repetition = folding.repetition
    assert repetition is not None, "the model was cut"
    assert not part.recorded.other_ranks, "an engine whose ranks are recorded together is not folded"
    layers = part.recording.recorder.event_layers()
    sections = find_sections(part.ledger, layers, repetition)
    recorded = CheckedFold(
        recipe=recipe,
        rank=rank,
        repetition=repetition,
        ledger=part.ledger,
        layers=layers,
        facts=part.facts,
        notes=part.notes,
        may_grow=positions_that_may_grow(part.ledger, sections, GROW_WITH_DEPTH),
    )
    growth = known_growth(recorded)
    is_checked = growth is not None
    if growth is None:
        growth = growth_without_check(recorded)
    if growth is None:
        shorter = _trace(recipe, folding.with_one_period_less(), start, rank)
        growth = _compare(part, shorter, sections, repetition)
        remember(replace(recorded, growth=growth))
        is_checked = True
    unfolding = Unfolding(part.ledger, sections, repetition, repetition.missing, growth)
    run = TracedRun(part.facts, unfolding.make(), part.notes, groups=part.groups)
    if is_checked:
        _keep(recipe, rank, part, run, describe_unfolding(unfolding, sections))
    return run


def _compare(part: _Part, shorter: _Part, sections: Sections, repetition: Repetition) -> dict[int, int]:
    """The sizes that grow with each period; see `growing_sizes`.

    Raises:
        CannotFold: the shorter model has other events.
    """
    growth = growing_sizes(part.ledger, sections, repetition, shorter.ledger)
    for index in growth:
        if part.ledger.allocations[index].op not in GROW_WITH_DEPTH:
            raise CannotFold(f"the size of {part.ledger.allocations[index]} depends on the number of layers")
    if part.facts != shorter.facts:
        raise CannotFold("what is known of the model depends on how many layers are left out")
    if part.notes != shorter.notes:
        raise CannotFold(
            f"a note depends on how many layers are left out: {_first_difference(part.notes, shorter.notes)}"
        )
    return growth


def _first_difference(one: tuple[Note, ...], other: tuple[Note, ...]) -> str:
    return next((note.text for note in one if note not in other), "one is missing")
