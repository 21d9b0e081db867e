"""Notes about the whole run: evaluation needs more than training, and libraries have another version."""

from __future__ import annotations

from collections.abc import Mapping

from axmem_trace.notes import Note
from axmem_trace.recipe.pins import find_other_libraries
from axmem_trace.recipe.recipe import Axolotl, Recipe
from axmem_trace.report.types import PhaseUse
from axmem_trace.units import format_bytes


def note_costly_evaluation(recipe: Recipe, phases: Mapping[str, PhaseUse]) -> tuple[Note, ...]:
    """A warning if the peak of evaluation is above the peak of every training step. It names the line of the key that
    causes it."""
    evaluation = phases.get("eval")
    steps = [use.allocated_bytes for name, use in phases.items() if name.startswith("step_")]
    if evaluation is None or not steps or evaluation.allocated_bytes <= max(steps):
        return ()
    difference = evaluation.allocated_bytes - max(steps)
    key, line, remedy = _blame(recipe)
    text = (
        f"evaluation needs {format_bytes(difference)} more than training ({format_bytes(evaluation.allocated_bytes)} "
        f"and {format_bytes(max(steps))}), and comes before step 1: {remedy}"
    )
    return (Note(kind="warning", key=key, text=text, bytes=difference, line=line),)


def note_other_libraries(axolotl: Axolotl, versions: Mapping[str, str]) -> tuple[Note, ...]:
    """A note on traced libraries whose version is not the one that this axolotl requires."""
    others = find_other_libraries(axolotl.pins, versions)
    if not others:
        return ()
    listed = ", ".join(f"{name} {versions[name]} (axolotl: {pin.removeprefix('==')})" for name, pin in others.items())
    text = f"not the libraries that axolotl {axolotl.version} installs; the figures are for the ones here: {listed}"
    return (Note(kind="assumed", key="--axolotl", text=text),)


def _blame(recipe: Recipe) -> tuple[str, int, str]:
    """The key that makes evaluation larger, its line, and what to do."""
    evaluation, batch, reasons = recipe.evaluation, recipe.batch, recipe.reasons
    if evaluation.rows * evaluation.row_tokens > batch.rows * batch.row_tokens:
        key = "eval_batch_size" if evaluation.rows > batch.rows else "eval_sequence_len"
        shapes = (
            f"{evaluation.rows} x {evaluation.row_tokens} tokens at once, training {batch.rows} x {batch.row_tokens}"
        )
        return key, _line(reasons, "evaluation.rows"), f"it sees {shapes}. Set a smaller {key}"
    if recipe.loss.path == "liger_fused_linear":
        key = "liger_fused_linear_cross_entropy"
        text = (
            "Liger's fused loss works in training only, and evaluation makes full logits. Set a smaller eval_batch_size"
        )
        return key, _line(reasons, "loss.path"), text
    text = "evaluation makes full logits in fp32. Set a smaller eval_batch_size"
    return "eval_batch_size", _line(reasons, "evaluation.rows") or _line(reasons, "evaluation.enabled"), text


def _line(reasons: Mapping[str, object], field: str) -> int:
    return int(getattr(reasons.get(field), "line", 0))
