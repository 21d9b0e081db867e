"""Unfolds a short model's ledger: inserts the periods that were left out into every pass. No torch here.

A copy of a middle period differs from it only in the numbers of its layers: it frees allocations of the copy of another
layer, at the same distance. The first and the last kept period keep their own frees, which free allocations of the
layers around the range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.folding.sections import Event, LayerPass, Once, Sections
from axmem_trace.ledger import NEVER, Ledger, Mark
from axmem_trace.ledger.columns import Allocations, Columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

MODEL = 1
"""The number of the period that is copied: the first period with a kept neighbour on each side."""


@dataclass
class _Plan:
    """The position of an item in the unfolded ledger: its first tick and its first allocation."""

    tick: int
    first: int
    num_allocations: int
    """The number in each period; for events that happen once, the number of all."""


class Unfolding:
    """Repeats `missing` periods in a divided ledger.

    Args:
        repetition: of the short model that was recorded.
        missing: how many periods to add; -1: leave out the period that would be copied.
        growth: by the position of an allocation outside the passes, the bytes by which its size grows with each period.
    """

    def __init__(
        self,
        ledger: Ledger,
        sections: Sections,
        repetition: Repetition,
        missing: int,
        growth: Mapping[int, int] | None = None,
    ) -> None:
        import numpy as np

        self._np = np
        self.ledger, self.sections, self.repetition = ledger, sections, repetition
        self.missing, self.growth = missing, growth or {}
        self.periods = repetition.periods + missing
        self._plans, self.ticks, num_allocations = self._make_plans()
        self.source = np.zeros(num_allocations, dtype=np.int64)
        """For each allocation of the result, the allocation of the short ledger that it repeats."""
        self.shift = np.zeros(num_allocations, dtype=np.int64)
        """For each allocation of the result, by how many layers it is shifted."""
        self.allocated_tick = np.zeros(num_allocations, dtype=np.int64)
        self.freed_tick = np.full(num_allocations, NEVER, dtype=np.int64)
        self._once: dict[int, int] = {}
        self._ranks = [self._rank(item) for item in sections.items]
        self._marks: list[Mark] = []
        self._empty_cache_ticks: list[int] = []

    @property
    def added_bytes(self) -> dict[int, int]:
        """By the position of an allocation of the result, the bytes by which its size grows with all `missing`
        periods."""
        return {self._once[index]: delta * self.missing for index, delta in self.growth.items()}

    def make(self) -> Ledger:
        """The ledger of the model with `missing` more periods."""
        for item, plan in zip(self.sections.items, self._plans, strict=True):
            if isinstance(item, Once):
                self._place_once(item, plan)
            else:
                self._place_allocations(item, plan)
        for item, plan in zip(self.sections.items, self._plans, strict=True):
            if isinstance(item, LayerPass):
                self._place_frees(item, plan)
        return Ledger(
            allocations=Allocations(self._make_columns()),
            marks=tuple(self._marks),
            ticks=self.ticks,
            empty_cache_ticks=tuple(self._empty_cache_ticks),
        )

    def _make_plans(self) -> tuple[list[_Plan], int, int]:
        plans, tick, number = [], 1, 0
        for item in self.sections.items:
            events = item.events if isinstance(item, Once) else item.periods[MODEL]
            times = 1 if isinstance(item, Once) else self.periods
            num_allocations = sum(event.kind == "allocate" for event in events)
            plans.append(_Plan(tick, number, num_allocations))
            tick += len(events) * times
            number += num_allocations * times
        return plans, tick, number

    def _rank(self, item: Once | LayerPass) -> Numbers:
        """For each position in a period, how many allocations come before it."""
        events = item.events if isinstance(item, Once) else item.periods[MODEL]
        allocates = self._np.array([event.kind == "allocate" for event in events], dtype=self._np.int64)
        return self._np.cumsum(allocates) - allocates

    # -- what happened once ---------------------------------------------------------------------------------------

    def _place_once(self, item: Once, plan: _Plan) -> None:
        number = plan.first
        behind = self.repetition.period * self.missing
        for tick, event in enumerate(item.events, start=plan.tick):
            if event.kind == "allocate":
                self._once[event.number] = number
                self.source[number], self.allocated_tick[number] = event.number, tick
                layer = self._layer_of(event.number)
                self.shift[number] = behind if layer is not None and layer >= self.repetition.last else 0
                number += 1
            elif event.kind == "free":
                self.freed_tick[self._find(event)] = tick
            elif event.kind == "mark":
                self._marks.append(replace(self.ledger.marks[event.number], tick=tick))
            elif event.kind == "empty_cache":
                self._empty_cache_ticks.append(tick)

    def _layer_of(self, index: int) -> int | None:
        columns = self.ledger.columns
        return self.repetition.layer_of(columns.modules[columns.module[index]])

    def _find(self, event: Event) -> int:
        """The allocation that is freed outside the passes."""
        home = self.sections.homes.get(event.number)
        if home is None:
            return self._once[event.number]
        period = home.period if home.period < MODEL else home.period + self.missing
        return int(self._number(home.layer_pass, self._np.array([period]), self._np.array([home.position]))[0])

    def _number(self, layer_pass: int, period: Numbers, position: Numbers) -> Numbers:
        """The numbers of allocations, from the period in the unfolded ledger and the position in the period."""
        item, plan = self.sections.items[layer_pass], self._plans[layer_pass]
        assert isinstance(item, LayerPass)
        turn = period if item.direction > 0 else self.periods - 1 - period
        return plan.first + turn * plan.num_allocations + self._ranks[layer_pass][position]

    # -- what happened in every period ----------------------------------------------------------------------------

    def _groups(self) -> list[tuple[int, Numbers]]:
        """Each kept period, and the periods of the result that repeat it."""
        np, kept = self._np, self.repetition.periods
        groups = [(period, np.array([period])) for period in range(MODEL)]
        groups.append((MODEL, np.arange(MODEL, MODEL + self.missing + 1)))
        return [*groups, *((period, np.array([period + self.missing])) for period in range(MODEL + 1, kept))]

    def _place_allocations(self, item: LayerPass, plan: _Plan) -> None:
        np, length = self._np, len(item.periods[MODEL])
        for period, targets in self._groups():
            events = item.periods[period]
            positions = np.array([j for j, event in enumerate(events) if event.kind == "allocate"], dtype=np.int64)
            sources = np.array([events[j].number for j in positions], dtype=np.int64)
            turns = targets if item.direction > 0 else self.periods - 1 - targets
            numbers = plan.first + turns[:, None] * plan.num_allocations + np.arange(plan.num_allocations)[None, :]
            self.source[numbers] = sources[None, :]
            self.shift[numbers] = (targets[:, None] - period) * self.repetition.period
            self.allocated_tick[numbers] = plan.tick + turns[:, None] * length + positions[None, :]

    def _place_frees(self, item: LayerPass, plan: _Plan) -> None:
        np, length = self._np, len(item.periods[MODEL])
        for period, targets in self._groups():
            turns = targets if item.direction > 0 else self.periods - 1 - targets
            by_pass: dict[int, list[tuple[int, int, int]]] = {}
            for position, event in enumerate(item.periods[period]):
                if event.kind != "free":
                    continue
                home = self.sections.homes.get(event.number)
                if home is None:  # an allocation of the layers around the range; a middle period frees none of these
                    self.freed_tick[self._once[event.number]] = plan.tick + int(turns[0]) * length + position
                else:
                    by_pass.setdefault(home.layer_pass, []).append((position, home.period - period, home.position))
            for layer_pass, ends in by_pass.items():
                position, offset, made_at = (np.array(column, dtype=np.int64) for column in zip(*ends, strict=True))
                numbers = self._number(layer_pass, targets[:, None] + offset[None, :], made_at[None, :])
                self.freed_tick[numbers] = plan.tick + turns[:, None] * length + position[None, :]

    # -- the result -----------------------------------------------------------------------------------------------

    def _make_columns(self) -> Columns:
        np, short = self._np, self.ledger.columns
        nbytes = short.nbytes[self.source]
        for position, added in self.added_bytes.items():
            nbytes[position] += added
        modules: dict[str, int] = {name: code for code, name in enumerate(short.modules)}
        first = int(np.min(self.shift, initial=0))
        num_shifts = 1 + int(np.max(self.shift, initial=0)) - first
        code = short.module[self.source].astype(np.int64) * num_shifts + self.shift - first  # of a module and a shift
        used = np.flatnonzero(np.bincount(code))
        renamed = [self._rename(short.modules[each // num_shifts], each % num_shifts + first) for each in used.tolist()]
        new = np.zeros(len(short.modules) * num_shifts, dtype=np.int32)
        new[used] = [modules.setdefault(name, len(modules)) for name in renamed]
        return Columns(
            nbytes=nbytes,
            allocated_tick=self.allocated_tick,
            freed_tick=self.freed_tick,
            module=new[code],
            kind=short.kind[self.source],
            modules=tuple(modules),
            kinds=short.kinds,
        )

    def _rename(self, name: str, shift: int) -> str:
        layer = self.repetition.layer_of(name) if shift else None
        return name if layer is None else self.repetition.renamed(name, layer + shift)


def growing_sizes(ledger: Ledger, sections: Sections, repetition: Repetition, shorter: Ledger) -> dict[int, int]:
    """Compares the ledger without the period that is copied with a recorded ledger of a model with one period less.

    Returns:
        By the position in the short ledger, the bytes by which an allocation outside the passes grows with each period.

    Raises:
        CannotFold: there is another difference; the message describes it.
    """
    import numpy as np

    unfolding = Unfolding(ledger, sections, repetition, -1)
    predicted = unfolding.make()
    mine, theirs = predicted.columns, shorter.columns
    if len(mine) != len(theirs) or predicted.ticks != shorter.ticks:
        raise CannotFold(
            f"{len(mine)} allocations and {predicted.ticks} ticks were predicted, {len(theirs)} and {shorter.ticks} traced"
        )
    if predicted.marks != shorter.marks or predicted.empty_cache_ticks != shorter.empty_cache_ticks:
        raise CannotFold("the marks are at other ticks")
    kinds = {kind: code for code, kind in enumerate(theirs.kinds)}
    modules = {name: code for code, name in enumerate(theirs.modules)}
    kind = np.array([kinds.get(each, -1) for each in mine.kinds])[mine.kind]
    module = np.array([modules.get(each, -1) for each in mine.modules])[mine.module]
    compared = {
        "begins": (mine.allocated_tick, theirs.allocated_tick),
        "ends": (mine.freed_tick, theirs.freed_tick),
        "is of another kind": (kind, theirs.kind),
        "is in another module": (module, theirs.module),
    }
    for what, (found, expected) in compared.items():
        differ = np.flatnonzero(found != expected)
        if len(differ):
            index = int(differ[0])
            raise CannotFold(f"{predicted.allocations[index]} {what}: {shorter.allocations[index]}")
    growth: dict[int, int] = {}
    for number in np.flatnonzero(mine.nbytes != theirs.nbytes).tolist():
        source = int(unfolding.source[number])
        if source in sections.homes:
            raise CannotFold(f"the size of {predicted.allocations[number]} depends on the number of layers")
        growth[source] = int(mine.nbytes[number] - theirs.nbytes[number])
    return growth
