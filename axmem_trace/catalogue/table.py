"""The bundled table of base models: `models.json` (built from `config.json` files), and two tables written by hand.

`models.json` and `recalled.json` map an id to `{config, parameters, published, trust, source, note}`. `parameters` is the
number of parameters of the model that transformers builds on the meta device; `published` is the number on the Hub or in
the model card. `aliases.json` has ids of models with the same shapes as another model: `aliases` maps that model's id to
lists by kind, and `kinds` has the fields that a kind replaces (a dtype, a `quantization_config`, a vocabulary; null removes
a field).
"""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from axmem_trace.files import read_table

_PACKAGE = "axmem_trace.catalogue"
_SAME_BASE = 0.95
"""The similarity of two names if one is the other with a suffix (`-Instruct`, `-bnb-4bit`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueEntry:
    """One bundled architecture and its origin.

    `trust` is `exact json` (a copy of the published file), `derived` (written from documented fields) or `recalled`
    (written from memory; included only if the built model has the published number of parameters, or if `note` gives
    other evidence).
    """

    id: str
    model_type: str
    parameters: int
    published: int
    trust: str
    source: str
    note: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A bundled configuration, as a copy that may be changed.

    `caution` says why it may differ from the published file; empty if it is a copy of that file.
    """

    id: str
    config: dict[str, Any]
    description: str
    caution: str = ""


@lru_cache(maxsize=1)
def load_models() -> dict[str, dict[str, Any]]:
    """Id -> record, from `models.json` and `recalled.json`. Takes about 5 ms."""
    return {**read_table(_PACKAGE, "models.json"), **read_table(_PACKAGE, "recalled.json")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """An id of a model with the shapes of `of`. `changes` replaces fields of its configuration (`None` removes one)."""

    of: str
    kind: str
    changes: dict[str, Any]


@lru_cache(maxsize=1)
def load_aliases() -> dict[str, Alias]:
    """Alias -> the model that it means: `aliases.json`, inverted."""
    table = read_table(_PACKAGE, "aliases.json")
    return {
        name: Alias(of=of, kind=kind, changes=table["kinds"][kind])
        for of, by_kind in table["aliases"].items()
        for kind, names in by_kind.items()
        for name in names
    }


def list_base_models() -> list[CatalogueEntry]:
    """Every bundled architecture with the ids that share it, sorted by id without regard to case."""
    aliases: dict[str, list[str]] = {}
    for name, alias in load_aliases().items():
        aliases.setdefault(alias.of, []).append(name)
    entries = [
        CatalogueEntry(
            id=name,
            model_type=record["config"]["model_type"],
            parameters=record["parameters"],
            published=record["published"],
            trust=record["trust"],
            source=record["source"],
            note=record.get("note", ""),
            aliases=tuple(sorted(aliases.get(name, ()), key=str.casefold)),
        )
        for name, record in load_models().items()
    ]
    return sorted(entries, key=lambda entry: entry.id.casefold())


def find_in_catalogue(name: str) -> Found | None:
    """The bundled configuration of an id. If no id matches exactly, upper and lower case are ignored."""
    models, aliases = load_models(), load_aliases()
    canonical = name if name in models or name in aliases else _by_folded_id().get(name.casefold(), "")
    if canonical in models:
        record = models[canonical]
        return Found(
            id=canonical,
            config=copy.deepcopy(record["config"]),
            description=_trust_words(record["trust"]),
            caution=_caution(record, canonical),
        )
    if canonical in aliases:
        alias = aliases[canonical]
        record = models[alias.of]
        changed = copy.deepcopy(record["config"] | alias.changes)
        config = {key: value for key, value in changed.items() if value is not None or key not in alias.changes}
        words = f"{alias.kind}: {alias.of}'s configuration, {_trust_words(record['trust'])}"
        return Found(id=canonical, config=config, description=words, caution=_caution(record, alias.of))
    return None


def nearest_ids(name: str, count: int = 5) -> list[str]:
    """The bundled ids that are most similar to `name`: first by the part after the slash, then by the whole name."""
    ids = [*load_models(), *load_aliases()]
    wanted = name.casefold().replace("\\", "/").rstrip("/")
    wanted_part = wanted.rpartition("/")[2]

    def likeness(candidate: str) -> tuple[float, float]:
        folded = candidate.casefold()
        folded_part = folded.rpartition("/")[2]
        whole = difflib.SequenceMatcher(None, wanted, folded).ratio()
        part = difflib.SequenceMatcher(None, wanted_part, folded_part).ratio()
        if wanted_part.startswith(f"{folded_part}-") or folded_part.startswith(f"{wanted_part}-"):
            part = max(part, _SAME_BASE)
        return max(whole, part), whole

    ranked = sorted(((*likeness(candidate), candidate) for candidate in ids), reverse=True)
    return [candidate for score, _, candidate in ranked[:count] if score >= 0.6]


@lru_cache(maxsize=1)
def _by_folded_id() -> dict[str, str]:
    return {name.casefold(): name for name in [*load_aliases(), *load_models()]}


_TRUST_WORDS = {
    "exact json": "copy of the published file",
    "derived": "derived: written from documented fields",
    "recalled": "recalled: written from memory",
}


def _trust_words(trust: str) -> str:
    return _TRUST_WORDS.get(trust, trust)


def _caution(record: dict[str, Any], name: str) -> str:
    """The caution for a configuration that is not a copy: its origin, and its size compared with the published one."""
    if record["trust"] == "exact json":
        return ""
    parameters, published = record["parameters"], record["published"]
    if parameters == published:
        compared = "exactly as published"
    else:
        compared = (
            f"{abs(parameters / published - 1):.1%} {'more' if parameters > published else 'less'} than published"
        )
    return (
        f"the bundled config.json of {name} is not a copy of the published file, but {_trust_words(record['trust'])}. The "
        f"model built from it has {parameters:,} parameters, {compared}; other fields may differ"
    )
