"""Parts of a report that are not figures: model, release of axolotl, batch, card, used values, and refusals.

All classes are frozen, like those in `types.py`, which has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
"""Increased when a field of the JSON changes its meaning or is removed; not for new fields."""


def json_name(name: str) -> Any:
    """A dataclass field that has another name in JSON (`class` is not a Python identifier)."""
    return field(metadata={"json": name})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSummary:
    """The model as built. `parameters` are logical: a packed 4-bit weight counts as the weights that it represents.

    Attributes:
        name: the value of `base_model`.
        model_type: that of `config.json`.
        class_name: the class that was built.
        config_source: where `config.json` came from.
        parameters, trainable_parameters: numbers of weights.
    """

    name: str
    model_type: str
    class_name: str = json_name("class")
    config_source: str = ""
    parameters: int = 0
    trainable_parameters: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AxolotlRelease:
    """The release of axolotl whose rules the figures follow, and the reason for it."""

    version: str = ""
    """Such as `0.21.0`."""
    reason: str = ""
    """The reason for this release, in words."""
    origin: str = ""
    """`override` (`--axolotl`), `derived` (it is installed here) or `default` (the newest that is known)."""
    other_libraries: Mapping[str, str] = field(default_factory=dict)
    """Traced libraries whose version is not the one that this release requires: name -> required version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShape:
    """The batch of one GPU in one forward.

    Attributes:
        rows, row_tokens: number of rows of one forward, and tokens in a row.
        packed: whether several samples share a row.
        samples_per_row: number of samples in a packed row.
        gradient_accumulation_steps: number of forwards for each optimizer step.
    """

    rows: int
    row_tokens: int
    packed: bool
    samples_per_row: int
    gradient_accumulation_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetGpu:
    """The target card. If `memory_bytes` is 0, no card was named.

    Attributes:
        name: the name in the table of cards, or the size that the user gave.
        memory_bytes: PyTorch's `total_memory`.
        count: number of GPUs of the run.
    """

    name: str
    memory_bytes: int
    context_bytes: int
    count: int
    margin_bytes: int = 0
    """The memory that must stay free on each card (`--margin`)."""
    margin_share: float = 0.0
    """The margin as a share of the card, if the user gave a share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One reason why the run is impossible: axolotl refuses the configuration, or the run certainly fails later.

    `key` is as the user wrote it, and `value` is its value as text. `line` is 0 if the key is not in the file. The
    reason does not change the figures; if it does, `reason` says which configuration they are for.

    Attributes:
        value: the value in the configuration.
        reason: why the run is impossible.
        remedy: what to do.
    """

    key: str
    line: int
    value: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoReport:
    """The output of `--format json`, instead of a report, if nothing can be estimated (exit code 2).

    Attributes:
        schema_version: the same as in a report.
        refusals: at least one.
    """

    schema_version: int = SCHEMA_VERSION
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A value that is used, and the reason for it (see `axmem_trace.recipe.recipe.Reason`).

    Attributes:
        value: the value as text.
        text: the reason.
        origin: `config`, `default`, `derived`, `assume` or `override`.
        line: the line of the configuration; 0: it is in no line.
    """

    value: str
    text: str
    origin: str
    line: int = 0
