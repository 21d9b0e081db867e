"""Unfold a short model's ledger: insert the periods that were left out in every sweep. No torch here.

A copy of a middle period differs from it only in its layer's number: what it frees was allocated by the copy of another
layer, at the same distance. The first and the last kept period keep their own frees, which concern the layers around
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.folding.sections import Event, Sections, Stretch, Sweep
from axmem_trace.ledger import NEVER, Ledger, Mark
from axmem_trace.ledger.columns import Allocations, Columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

MODEL = 1
"""The period that is copied: the first one with a kept neighbour on each side."""


@dataclass
class _Plan:
    """The position of an item in the unfolded ledger: its first tick and its first allocation."""

    tick: int
    birth: int
    births: int
    """In each period; of a stretch, in all."""


class Unfolding:
    """Repeats `missing` periods in a divided ledger.

    Args:
        repetition: of the short model that was recorded.
        missing: how many periods to add.
        growth: by the position of an allocation outside the sweeps, by how much its size grows with each period.
    """

    def __init__(self, ledger: Ledger, sections: Sections, repetition: Repetition, missing: int,
                 growth: Mapping[int, int] | None = None) -> None:  # fmt: skip
        import numpy as np

        self._np = np
        self.ledger, self.sections, self.repetition = ledger, sections, repetition
        self.missing, self.growth = missing, growth or {}
        self.periods = repetition.periods + missing
        self._plans, self.ticks, births = self._make_plans()
        self.source = np.zeros(births, dtype=np.int64)
        """For each allocation of the result: the one of the short ledger that it repeats."""
        self.shift = np.zeros(births, dtype=np.int64)
        """For each, by how many layers it is shifted."""
        self.born = np.zeros(births, dtype=np.int64)
        self.died = np.full(births, NEVER, dtype=np.int64)
        self._once: dict[int, int] = {}
        self._ranks = [self._rank(item) for item in sections.items]
        self._marks: list[Mark] = []
        self._empty_cache_ticks: list[int] = []

    def make(self) -> Ledger:
        """The ledger of a model with `missing` periods more."""
        for item, plan in zip(self.sections.items, self._plans, strict=True):
            if isinstance(item, Stretch):
                self._place_stretch(item, plan)
            else:
                self._place_births(item, plan)
        for item, plan in zip(self.sections.items, self._plans, strict=True):
            if isinstance(item, Sweep):
                self._place_deaths(item, plan)
        return Ledger(
            allocations=Allocations(self._make_columns()),
            marks=tuple(self._marks),
            ticks=self.ticks,
            empty_cache_ticks=tuple(self._empty_cache_ticks),
        )

    def _make_plans(self) -> tuple[list[_Plan], int, int]:
        plans, tick, birth = [], 1, 0
        for item in self.sections.items:
            events = item.events if isinstance(item, Stretch) else item.periods[MODEL]
            times = 1 if isinstance(item, Stretch) else self.periods
            births = sum(event.kind == "birth" for event in events)
            plans.append(_Plan(tick, birth, births))
            tick += len(events) * times
            birth += births * times
        return plans, tick, birth

    def _rank(self, item: Stretch | Sweep) -> Numbers:
        """For each position in a period, how many allocations come before it."""
        events = item.events if isinstance(item, Stretch) else item.periods[MODEL]
        births = self._np.array([event.kind == "birth" for event in events], dtype=self._np.int64)
        return self._np.cumsum(births) - births

    # -- what happened once ---------------------------------------------------------------------------------------

    def _place_stretch(self, item: Stretch, plan: _Plan) -> None:
        birth = plan.birth
        behind = self.repetition.period * self.missing
        for tick, event in enumerate(item.events, start=plan.tick):
            if event.kind == "birth":
                self._once[event.number] = birth
                self.source[birth], self.born[birth] = event.number, tick
                layer = self._layer_of(event.number)
                self.shift[birth] = behind if layer is not None and layer >= self.repetition.last else 0
                birth += 1
            elif event.kind == "death":
                self.died[self._find(event)] = tick
            elif event.kind == "mark":
                self._marks.append(replace(self.ledger.marks[event.number], tick=tick))
            elif event.kind == "empty_cache":
                self._empty_cache_ticks.append(tick)

    def _layer_of(self, index: int) -> int | None:
        columns = self.ledger.columns
        return self.repetition.layer_of(columns.modules[columns.module[index]])

    def _find(self, event: Event) -> int:
        """The allocation that is freed outside the sweeps."""
        home = self.sections.homes.get(event.number)
        if home is None:
            return self._once[event.number]
        period = home.period if home.period < MODEL else home.period + self.missing
        return int(self._number(home.sweep, self._np.array([period]), self._np.array([home.position]))[0])

    def _number(self, sweep: int, period: Numbers, position: Numbers) -> Numbers:
        """Allocations by where they are made: period of the unfolded ledger, position in the period."""
        item, plan = self.sections.items[sweep], self._plans[sweep]
        assert isinstance(item, Sweep)
        turn = period if item.direction > 0 else self.periods - 1 - period
        return plan.birth + turn * plan.births + self._ranks[sweep][position]

    # -- what happened in every period ----------------------------------------------------------------------------

    def _groups(self) -> list[tuple[int, Numbers]]:
        """Kept periods, and which periods of the result repeat each."""
        np, kept = self._np, self.repetition.periods
        groups = [(period, np.array([period])) for period in range(MODEL)]
        groups.append((MODEL, np.arange(MODEL, MODEL + self.missing + 1)))
        return [*groups, *((period, np.array([period + self.missing])) for period in range(MODEL + 1, kept))]

    def _place_births(self, item: Sweep, plan: _Plan) -> None:
        np, length = self._np, len(item.periods[MODEL])
        for period, targets in self._groups():
            events = item.periods[period]
            positions = np.array([j for j, event in enumerate(events) if event.kind == "birth"], dtype=np.int64)
            sources = np.array([events[j].number for j in positions], dtype=np.int64)
            turns = targets if item.direction > 0 else self.periods - 1 - targets
            numbers = plan.birth + turns[:, None] * plan.births + np.arange(plan.births)[None, :]
            self.source[numbers] = sources[None, :]
            self.shift[numbers] = (targets[:, None] - period) * self.repetition.period
            self.born[numbers] = plan.tick + turns[:, None] * length + positions[None, :]

    def _place_deaths(self, item: Sweep, plan: _Plan) -> None:
        np, length = self._np, len(item.periods[MODEL])
        for period, targets in self._groups():
            turns = targets if item.direction > 0 else self.periods - 1 - targets
            by_sweep: dict[int, list[tuple[int, int, int]]] = {}
            for position, event in enumerate(item.periods[period]):
                if event.kind != "death":
                    continue
                home = self.sections.homes.get(event.number)
                if home is None:  # of the layers around; a middle period has none such
                    self.died[self._once[event.number]] = plan.tick + int(turns[0]) * length + position
                else:
                    by_sweep.setdefault(home.sweep, []).append((position, home.period - period, home.position))
            for sweep, ends in by_sweep.items():
                position, offset, made_at = (np.array(column, dtype=np.int64) for column in zip(*ends, strict=True))
                numbers = self._number(sweep, targets[:, None] + offset[None, :], made_at[None, :])
                self.died[numbers] = plan.tick + turns[:, None] * length + position[None, :]

    # -- the result -----------------------------------------------------------------------------------------------

    def _make_columns(self) -> Columns:
        np, short = self._np, self.ledger.columns
        nbytes = short.nbytes[self.source]
        for index, delta in self.growth.items():
            nbytes[self._once[index]] += delta * self.missing
        modules: dict[str, int] = {name: code for code, name in enumerate(short.modules)}
        code = short.module[self.source].astype(np.int64)
        pairs, inverse = np.unique(np.stack([code, self.shift]), axis=1, return_inverse=True)
        renamed = [self._rename(short.modules[module], int(shift)) for module, shift in pairs.T.tolist()]
        new = np.array([modules.setdefault(name, len(modules)) for name in renamed], dtype=np.int32)
        return Columns(
            nbytes=nbytes, born=self.born, died=self.died, module=new[inverse.reshape(-1)],
            kind=short.kind[self.source], modules=tuple(modules), kinds=short.kinds,
        )  # fmt: skip

    def _rename(self, name: str, shift: int) -> str:
        layer = self.repetition.layer_of(name) if shift else None
        return name if layer is None else self.repetition.renamed(name, layer + shift)


def growing_sizes(ledger: Ledger, sections: Sections, repetition: Repetition, longer: Ledger) -> dict[int, int]:
    """Compares the prediction of unfolding for one more period with the ledger of such a model.

    Returns:
        By how much allocations outside the sweeps grow with each period, by their position in the short ledger.

    Raises:
        CannotFold: something else differs; the message says what.
    """
    import numpy as np

    unfolding = Unfolding(ledger, sections, repetition, 1)
    predicted = unfolding.make()
    mine, theirs = predicted.columns, longer.columns
    if len(mine) != len(theirs) or predicted.ticks != longer.ticks:
        raise CannotFold(
            f"{len(mine)} allocations and {predicted.ticks} ticks were predicted, {len(theirs)} and {longer.ticks} traced"
        )
    if predicted.marks != longer.marks or predicted.empty_cache_ticks != longer.empty_cache_ticks:
        raise CannotFold("the marks are at other ticks")
    kinds = {kind: code for code, kind in enumerate(theirs.kinds)}
    modules = {name: code for code, name in enumerate(theirs.modules)}
    kind = np.array([kinds.get(each, -1) for each in mine.kinds])[mine.kind]
    module = np.array([modules.get(each, -1) for each in mine.modules])[mine.module]
    compared = {
        "begins": (mine.born, theirs.born),
        "ends": (mine.died, theirs.died),
        "is of another kind": (kind, theirs.kind),
        "is in another module": (module, theirs.module),
    }
    for what, (found, expected) in compared.items():
        differ = np.flatnonzero(found != expected)
        if len(differ):
            index = int(differ[0])
            raise CannotFold(f"{predicted.allocations[index]} {what}: {longer.allocations[index]}")
    growth: dict[int, int] = {}
    for number in np.flatnonzero(mine.nbytes != theirs.nbytes).tolist():
        source = int(unfolding.source[number])
        if source in sections.homes:
            raise CannotFold(f"the size of {predicted.allocations[number]} depends on the number of layers")
        growth[source] = int(theirs.nbytes[number] - mine.nbytes[number])
    return growth
