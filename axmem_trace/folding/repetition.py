"""Which layers of a model repeat, and the names of what is inside them. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property


class CannotFold(Exception):
    """Repeated layers can't be traced once; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """A shortened list of layers with a periodic range.

    The layers before `first` stay, then `periods` periods, and all layers after the range; `missing` periods between them
    are left out. Layers are numbered as in the short model, if not stated otherwise.

    Attributes:
        path: dotted name of the list in the model, before an adapter wraps it.
        length: layers of the whole model.
        first: number of the first layer of the first period that is kept.
        period: layers of a period.
        periods: kept, at least three.
        missing: periods left out, 0 for the whole model.
    """

    path: str
    length: int
    first: int
    period: int
    periods: int
    missing: int

    @property
    def last(self) -> int:
        """One after the last layer of the kept periods."""
        return self.first + self.period * self.periods

    @property
    def kept(self) -> list[int]:
        """Numbers, in the whole model, of the layers that are kept."""
        gap = self.period * self.missing
        return [*range(self.last), *range(self.last + gap, self.length)]

    def with_periods(self, periods: int) -> Repetition:
        """The same with more or fewer periods kept."""
        return replace(self, periods=periods, missing=self.missing + self.periods - periods)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?:base_model\.model\.)?{re.escape(self.path)}\.(\d+)(?=\.|$)")

    @cached_property
    def _layers(self) -> dict[str, int | None]:
        return {}

    def layer_of(self, name: str) -> int | None:
        """The layer that a module or tensor of this name is in; None: it is in none of the list."""
        if name not in self._layers:
            found = self._pattern.match(name)
            self._layers[name] = int(found[1]) if found else None
        return self._layers[name]

    def is_repeated(self, layer: int | None) -> bool:
        """Whether the layer is in one of the kept periods."""
        return layer is not None and self.first <= layer < self.last

    def represents(self, name: str) -> int:
        """How many modules or tensors of the whole model one of the short model represents."""
        layer = self.layer_of(name)
        copied = layer is not None and self.first + self.period <= layer < self.first + 2 * self.period
        return 1 + self.missing if copied else 1

    def renamed(self, name: str, layer: int) -> str:
        """The name of the same module or tensor in another layer; a name outside of layers is not changed."""
        found = self._pattern.match(name)
        return name if found is None else f"{name[: found.start(1)]}{layer}{name[found.end(1) :]}"
