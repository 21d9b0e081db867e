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

    The short model has the layers before `first`, then `periods` periods, and all layers after the range. `missing`
    periods of the range are left out. Layers have their numbers in the short model, if not stated otherwise.

    Attributes:
        path: dotted name of the list in the model, before an adapter wraps it.
        length: number of layers of the whole model.
        first: number of the first layer of the first period that is kept.
        period: number of layers in a period.
        periods: number of periods that are kept, at least two.
        missing: number of periods that are left out; 0 for the whole model.
    """

    path: str
    length: int
    first: int
    period: int
    periods: int
    missing: int

    @property
    def last(self) -> int:
        """The number after that of the last layer of the kept periods."""
        return self.first + self.period * self.periods

    @property
    def kept(self) -> list[int]:
        """The kept layers, by their numbers in the whole model."""
        gap = self.period * self.missing
        return [*range(self.last), *range(self.last + gap, self.length)]

    def with_periods(self, periods: int) -> Repetition:
        """The same with another number of kept periods."""
        return replace(self, periods=periods, missing=self.missing + self.periods - periods)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?:base_model\.model\.)?{re.escape(self.path)}\.(\d+)(?=\.|$)")

    @cached_property
    def _found(self) -> dict[str, tuple[int, int, int] | None]:
        return {}

    def _find(self, name: str) -> tuple[int, int, int] | None:
        """The layer in a name, and where its number begins and ends; None: the name has none."""
        if name not in self._found:
            found = self._pattern.match(name)
            self._found[name] = (int(found[1]), *found.span(1)) if found else None
        return self._found[name]

    def layer_of(self, name: str) -> int | None:
        """The layer of a module or tensor of this name; None: it is in no layer of the list."""
        found = self._find(name)
        return None if found is None else found[0]

    def is_repeated(self, layer: int | None) -> bool:
        """Whether the layer is in one of the kept periods."""
        return layer is not None and self.first <= layer < self.last

    def represents(self, name: str) -> int:
        """How many modules or tensors of the whole model one of the short model represents."""
        layer = self.layer_of(name)
        copied = layer is not None and self.first + self.period <= layer < self.first + 2 * self.period
        return 1 + self.missing if copied else 1

    def renamed(self, name: str, layer: int) -> str:
        """The name of the same module or tensor in another layer. A name outside of the layers is not changed."""
        found = self._find(name)
        return name if found is None else f"{name[: found[1]]}{layer}{name[found[2] :]}"
