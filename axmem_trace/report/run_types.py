"""What the figures of a report are about: model, release of axolotl, batch, card, values used, and reasons not to run.

Frozen, as in `types.py`, which has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
"""Increased when a field of the JSON changes its meaning or is removed; not for new fields."""


def json_name(name: str) -> Any:
    """A dataclass field that has another name in JSON (`class` is no Python identifier)."""
    return field(metadata={"json": name})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSummary:
    """The model as built. `parameters` are logical: a packed 4-bit weight counts as the weights it represents.

    Attributes:
        name: as `base_model` names it.
        model_type: of `config.json`.
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
    """The release of axolotl whose rules the figures follow, and why that one."""

    version: str = ""
    """As in `0.21.0`."""
    reason: str = ""
    """Why this one, in words."""
    origin: str = ""
    """`override` (`--axolotl`), `derived` (it is installed here) or `default` (the newest that is known)."""
    other_libraries: Mapping[str, str] = field(default_factory=dict)
    """Traced libraries that are not those that this release requires: name -> what it requires."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShape:
    """The batch of one GPU in one forward.

    Attributes:
        rows, row_tokens: of one forward.
        packed: several samples share a row.
        samples_per_row: in a packed row.
        gradient_accumulation_steps: forwards for each optimizer step.
    """

    rows: int
    row_tokens: int
    packed: bool
    samples_per_row: int
    gradient_accumulation_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetGpu:
    """The target card; `memory_bytes` 0 means that none was named.

    Attributes:
        name: as in the table of cards, or the size that was given.
        memory_bytes: PyTorch's `total_memory`.
        count: GPUs of the run.
    """

    name: str
    memory_bytes: int
    context_bytes: int
    count: int
    margin_bytes: int = 0
    """What must stay free of each card (`--margin`)."""
    margin_share: float = 0.0
    """The share of the card that `margin_bytes` is, where it was given as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One reason why the run can't run: axolotl refuses the configuration, or the run certainly stops later.

    `key` is as the user wrote it, `value` is its value, as text; `line` is 0 if the key is not in the file. The reason
    does not change the figures, or `reason` says for which configuration they are.

    Attributes:
        value: what the configuration gives.
        reason: why the run can't run.
        remedy: what to do.
    """

    key: str
    line: int
    value: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoReport:
    """What `--format json` writes in place of a report if nothing can be estimated (exit code 2).

    Attributes:
        schema_version: as of a report.
        refusals: at least one.
    """

    schema_version: int = SCHEMA_VERSION
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A value that is used, and the reason for it (see `axmem_trace.recipe.recipe.Reason`).

    Attributes:
        value: as text.
        text: the reason.
        origin: `config`, `default`, `derived`, `assume` or `override`.
        line: of the configuration; 0: in no line.
    """

    value: str
    text: str
    origin: str
    line: int = 0
