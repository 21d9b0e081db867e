"""A run that others measured, as arguments of `axmem_trace`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1 << 30
DATASET = [{"path": "any", "type": "alpaca"}]


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""The exceptions for a record without a field, or with a field of another type. `CannotExpress` is one of them."""


class CannotExpress(ValueError):
    """A run that can't be described by a configuration and assumptions; the message says why."""


def explain(error: Exception) -> str:
    """The reason why a record is not a case, for the list of runs that were not estimated."""
    if isinstance(error, CannotExpress):
        return str(error)
    if isinstance(error, KeyError):
        return f"the record does not say {error.args[0]}"
    return f"the record can't be read: {type(error).__name__}: {error}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: what to estimate, and the measured bytes by quantity (`allocated`, `end`, ...)."""

    id: str
    source: str
    quality: str
    metric: str
    num_gpus: int
    measured: Mapping[str, float]
    config: Mapping[str, Any] = field(default_factory=dict)
    assumptions: Mapping[str, Any] = field(default_factory=dict)
    gpu: str = ""
    line: str = ""
    """Runs with the same line differ only in the batch."""
    rows: int = 0
    adapters_unmeasured: bool = False
    """The adapters reach the GPU after the trainer was made and before it trains: no published figure includes them."""
    cannot: str = ""
    """The reason why it can't be expressed; empty if it can."""


def read_record(read: Callable[[Any], Case], record: Any, kind: str = "run") -> Case:
    """The case that `read` makes from a record. If it fails, a case with the reason, which is not estimated."""
    try:
        case = read(record)
        if not case.measured or not all(0 < float(value) < math.inf for value in case.measured.values()):
            raise CannotExpress("no figure was measured")
        if not isinstance(case.rows, int):
            raise CannotExpress(f"{case.rows!r} is no number of rows")
        return case
    except UNREADABLE as error:
        told = record if isinstance(record, Mapping) else {}
        name = str(told.get("id") or told.get("variant") or f"{kind} of line {told.get('line', '?')}")
        return Case(
            id=name,
            source=name.split("-")[0],
            quality=str(told.get("quality", "?")),
            metric="?",
            num_gpus=0,
            measured={},
            cannot=explain(error),
        )


def read_release(version: str) -> tuple[int, ...]:
    """Such as (4, 48) of `4.48.1` or `4.48.dev0`."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise CannotExpress(f"what transformers {version} is not known")
    return int(found[1]), int(found[2])


def loss_path(release: tuple[int, ...], old_bigcode: bool) -> str:
    """transformers `modeling_*.py` and `loss/loss_utils.py` of the version."""
    if old_bigcode and release < (4, 50):
        return "half_shifted_copy"
    if release < (4, 46):
        return "upcast_shifted_copy"
    return "shifted_copy" if release < (4, 51) else "native"
