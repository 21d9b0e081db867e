"""A run that others measured, as `axmem_trace` is asked about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1 << 30
DATASET = [{"path": "any", "type": "alpaca"}]


class CannotExpress(ValueError):
    """A run that no configuration and no assumption describes; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: what to estimate, and what was measured, in bytes, by quantity (`allocated`, `end`, ...)."""

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
    """Runs with the same line differ in the batch alone."""
    rows: int = 0
    cannot: str = ""
    """Why it can't be expressed; empty where it can."""
