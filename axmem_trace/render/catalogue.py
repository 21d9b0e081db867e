"""The list of bundled base models, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from axmem_trace.catalogue.pattern import make_matcher
from axmem_trace.render.describe import format_count

if TYPE_CHECKING:
    from axmem_trace.catalogue import CatalogueEntry

LEAD = """\
size: parameters; a line `= ID` is another id with the same shapes
config.json: exact json (a copy of the published file), derived (written from
documented fields) or recalled (written from memory). An estimate of the last
two warns; --hub reads the real file
"""


def find_models(pattern: str = "") -> list[CatalogueEntry]:
    """Bundled models whose id or alias contains `pattern`, or matches it if it has `*`, `?` or `[`. Case does not
    matter.

    An empty pattern finds all.
    """
    from axmem_trace.catalogue import list_base_models

    matches = make_matcher(pattern)
    return [entry for entry in list_base_models() if any(map(matches, (entry.id, *entry.aliases)))]


def render_models(entries: Sequence[CatalogueEntry], form: str) -> str:
    """The entries as aligned lines with a head (`text`), or as a JSON list of objects (`json`)."""
    if form == "json":
        return json.dumps([asdict(entry) for entry in entries], indent=2) + "\n"
    width = max([len("base model"), *(len(entry.id) for entry in entries)])
    kind_width = max([len("model_type"), *(len(entry.model_type) for entry in entries)])
    lines = [f"{'base model':{width}}  {'size':>7}  {'model_type':{kind_width}}  config.json"]
    for entry in entries:
        lines.append(
            f"{entry.id:{width}}  {format_count(entry.parameters):>7}  {entry.model_type:{kind_width}}  {entry.trust}"
        )
        lines += [f"  = {alias}" for alias in entry.aliases]
    return LEAD + "\n" + "\n".join(line.rstrip() for line in lines) + "\n"
