"""Settings to try against the largest uses of memory. They have no figures, because only an estimate has figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axmem_trace.report.holders import IN_LAYERS, LAYER_WEIGHTS, LOGITS, OPTIMIZER_STATES

if TYPE_CHECKING:
    from axmem_trace.report.report import Report

PLAIN_DTYPES = ("bfloat16", "float16", "float32")
"""The values of `run["base"]` for weights that are not quantised."""
NUM_HINTS = 2
MIN_SHARE = 0.2
"""Uses with a smaller share of the peak get no hint."""


def list_hints(report: Report) -> list[str]:
    """Up to two settings for the largest uses of memory; none if the run fits with space left."""
    if report.verdict == "fits with room":
        return []
    hints = [
        f"{setting} ({holder.name}: {why})"
        for holder in report.holders
        if holder.bytes >= MIN_SHARE * report.peak.allocated_bytes
        for setting, why in [_hint_for(holder.name, report)]
        if setting
    ]
    return hints[:NUM_HINTS]


def _hint_for(holder: str, report: Report) -> tuple[str, str]:
    """A setting and its effect; empty if the run already has it, or if no simple setting helps."""
    run = report.run
    if holder == LOGITS and run.get("loss") in ("native", "shifted_copy", "upcast_shifted_copy", "half_shifted_copy"):
        return "`cut_cross_entropy: true` with its plugin", "a fused loss never holds all of them"
    if holder == IN_LAYERS and run.get("checkpointing") == "none":
        return "`gradient_checkpointing: true`", "recomputed instead of kept"
    if holder == OPTIMIZER_STATES and "8bit" not in run.get("optimizer", ""):
        return "`optimizer: adamw_bnb_8bit`", "one byte each instead of four"
    if holder == LAYER_WEIGHTS and run.get("base") in PLAIN_DTYPES and run.get("method", "").startswith("lora"):
        return "`adapter: qlora` with `load_in_4bit: true`", "half a byte each"
    return "", ""
