"""The result of `fit` as JSON, with a schema version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axmem_trace.advice.fitting.fit import Fit
    from axmem_trace.advice.fitting.singles import Single

SCHEMA_VERSION = 1
"""Increased when a field of the JSON changes its meaning or is removed; not for new fields."""


def fit_to_dict(fit: Fit) -> dict[str, Any]:
    """The JSON of `fit`, version `SCHEMA_VERSION`."""
    gpu, answer, chosen = fit.report.gpu, fit.as_it_is, fit.chosen
    card = {"name": gpu.name, "memory_bytes": gpu.memory_bytes, "count": gpu.count, "margin_bytes": fit.margin_bytes}
    return {
        "schema_version": SCHEMA_VERSION,
        "config": fit.report.run.get("config", ""),
        "gpu": card,
        "fits": fit.fits,
        "as_it_is": {
            "verdict": answer.verdict,
            "fits": answer.fits,
            "why": answer.why,
            "need_bytes": answer.need_bytes,
            "short_bytes": max(0, fit.margin_bytes - answer.left_bytes),
            "phase": answer.phase,
            "step": answer.step,
            "holders": [{"name": each.name, "bytes": each.bytes} for each in fit.report.holders],
            "refusals": [each.reason for each in fit.report.refusals],
        },
        "cure": None if fit.cure is None else dict(fit.cure.settings),
        "skipped": list(fit.skipped),
        "changes": [_single_to_dict(single) for single in fit.singles],
        "chosen": None
        if chosen is None
        else {
            "names": [single.candidate.name for single in chosen.singles],
            "settings": dict(chosen.change.settings),
            "num_gpus": chosen.answer.num_gpus,
            "environment": dict(chosen.change.environment),
            "need_bytes": chosen.answer.need_bytes,
            "left_bytes": chosen.answer.left_bytes,
            "verdict": chosen.answer.verdict,
        },
        "largest": [
            {
                "key": each.key,
                "value": each.value,
                "need_bytes": each.need_bytes,
                "next_need_bytes": each.next_need_bytes,
                "next_refusal": each.next_refusal,
                "is_limit": each.is_limit,
            }
            for each in fit.largest
        ],
        "patch": fit.patch,
        "num_estimates": fit.num_estimates,
        "seconds": round(fit.seconds, 3),
    }


def _single_to_dict(single: Single) -> dict[str, Any]:
    answer = single.answer
    return {
        "name": single.candidate.name,
        "words": single.words,
        "settings": dict(single.change.settings),
        "num_gpus": answer.num_gpus,
        "environment": dict(single.change.environment),
        "need_bytes": answer.need_bytes,
        "saved_bytes": single.saved_bytes,
        "left_bytes": answer.left_bytes,
        "fits": answer.fits if answer.need_bytes else None,
        "verdict": answer.verdict,
        "host_bytes": answer.host_bytes,
        "cost": single.cost,
        "grade": single.grade.name.lower(),
        "blocked": single.blocked,
    }
