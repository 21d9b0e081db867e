"""The lines that axolotl will log, and the figures in each.

Source: axolotl `utils/bench.py` `gpu_memory_usage_all` (line 62 of 0.19 and 0.21: each read resets the peaks);
`loaders/model.py` (0.21 lines 441 and 866, 0.19 lines 275 and 608: they are read, and so reset, when model and adapters
are loaded); `core/trainers/base.py` `log` (0.21 line 1103, 0.19 line 744: only on the main process, for losses and for
evaluations); `core/trainers/dpo/trainer.py`, `trl.py`, `grpo/trainer.py`: the `log` of TRL's trainers has no memory
figures. transformers `trainer.py` `_maybe_log_save_evaluate`: the line of a step is logged before its evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.types import PhaseUse


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedLine:
    """One line of axolotl's log, for rank 0: the peaks since the line before it, or since loading.

    Attributes:
        name: `first step`, `later steps` or `evaluation`; `steps 1 to 10` if only every tenth step is logged.
        active_bytes: `memory/max_active`.
        allocated_bytes: `memory/max_allocated`.
        reserved_bytes: `memory/device_reserved`.
    """

    name: str
    active_bytes: int
    allocated_bytes: int
    reserved_bytes: int


def make_logged(recipe: Recipe, phases: Mapping[str, PhaseUse]) -> tuple[LoggedLine, ...]:
    """The different lines in the order in which they first appear; none with TRL's trainers.

    An evaluation line has the peaks of evaluation only: axolotl evaluates before the first step, and after steps that
    it has logged. If `logging_steps` skips the step before an evaluation, that line also includes the steps since the
    last line.
    """
    if recipe.objective.is_preference:
        return ()
    every = recipe.logging_steps
    first = ("step_1", "step_2") if every > 1 else ("step_1",)
    lines = {
        f"steps 1 to {every}" if every > 1 else "first step": first,
        "later steps": ("step_2",),
        "evaluation": ("eval",),
    }
    found = {name: [phases[each] for each in parts if each in phases] for name, parts in lines.items()}
    order = (
        [*found] if not recipe.evaluation.before_training else ["evaluation", *[n for n in found if n != "evaluation"]]
    )
    return tuple(_line(name, found[name]) for name in order if found[name])


def _line(name: str, uses: list[PhaseUse]) -> LoggedLine:
    return LoggedLine(
        name=name,
        active_bytes=max(max(use.active_bytes, use.counted_bytes) for use in uses),
        allocated_bytes=max(use.counted_bytes for use in uses),
        reserved_bytes=max(use.reserved_bytes for use in uses),
    )
