"""The list of bundled base models, as text or JSON."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from axmem_trace.render.tables import format_count

if TYPE_CHECKING:
    from axmem_trace.catalogue import CatalogueEntry


def find_models(pattern: str = "") -> list[CatalogueEntry]:
    """Bundled models with an id or alias that contains `pattern`, or matches it if it has `*`, `?` or `[`; any case.

    An empty pattern finds all.
    """
    from axmem_trace.catalogue import list_base_models

    wanted = pattern.casefold()
    is_glob = any(char in wanted for char in "*?[")

    def matches(name: str) -> bool:
        return fnmatch.fnmatchcase(name.casefold(), wanted) if is_glob else wanted in name.casefold()

    return [entry for entry in list_base_models() if any(map(matches, (entry.id, *entry.aliases)))]


def render_models(entries: Sequence[CatalogueEntry], form: str) -> str:
    """The entries as aligned lines (`text`), or as a JSON list of objects (`json`)."""
    if form == "json":
        return json.dumps([asdict(entry) for entry in entries], indent=2) + "\n"
    width = max((len(entry.id) for entry in entries), default=0)
    kind_width = max((len(entry.model_type) for entry in entries), default=0)
    lines = []
    for entry in entries:
        lines.append(
            f"{entry.id:{width}}  {format_count(entry.parameters):>7}  {entry.model_type:{kind_width}}  {entry.trust}"
        )
        lines += [f"  = {alias}" for alias in entry.aliases]
    return "\n".join(line.rstrip() for line in lines) + "\n"
