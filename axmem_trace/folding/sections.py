"""The events of a short model, divided into events that happen once and passes over repeated layers. No torch here.

Forward goes up through the layers, backward goes down, and each list of the optimizer goes up again. In each of these
passes, all kept periods must have the same events: the same sizes, operators, roles and modules in the same order. Each
free must free the same allocation in its own layer, or in a layer at the same distance. With any difference, nothing is
folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.ledger import NEVER, Ledger
from axmem_trace.ledger.columns import Columns


class Event(NamedTuple):
    """The event at a tick: an allocation, a free, a mark, a call of `empty_cache`, or nothing that counts."""

    kind: Literal["allocate", "free", "mark", "empty_cache", "nothing"]
    number: int = -1
    """Position of the allocation, or of the mark."""


@dataclass(frozen=True, slots=True)
class EventLayers:
    """The layers in which events happened.

    Attributes:
        at_tick: the running layer; `OUTSIDE` for a module outside of the list; absent: no module.
        of_allocation: the layer to which each allocation belongs; None: it belongs to no layer.
    """

    at_tick: Mapping[int, int]
    of_allocation: Sequence[int | None]


OUTSIDE = -1


@dataclass
class Once:
    """Events that happened once."""

    events: list[Event]


@dataclass
class LayerPass:
    """The events of each period, in the order of the periods. `direction` is 1 for a pass up through the layers, -1 for
    a pass down."""

    direction: int
    periods: list[list[Event]]


class Home(NamedTuple):
    """The position of an allocation in a pass: the pass, the period, and its position in the period."""

    layer_pass: int
    period: int
    position: int


@dataclass
class Sections:
    """A divided ledger. `homes` has the allocations that were made in passes."""

    items: list[Once | LayerPass]
    homes: dict[int, Home] = field(default_factory=dict)


def find_sections(ledger: Ledger, layers: EventLayers, repetition: Repetition) -> Sections:
    """Divides a ledger.

    Raises:
        CannotFold: the periods differ.
    """
    if any(kind.busy_until for kind in ledger.columns.kinds):
        raise CannotFold("blocks wait for another stream until a certain tick")
    runs = _join_returns(_split_by_layer(list_events(ledger), layers))
    sections = Sections(_find_passes(runs, repetition))
    for number, item in enumerate(sections.items):
        if isinstance(item, LayerPass):
            for period, events in enumerate(item.periods):
                for position, event in enumerate(events):
                    if event.kind == "allocate":
                        sections.homes[event.number] = Home(number, period, position)
    _compare_periods(sections, ledger.columns, repetition)
    return sections


def list_events(ledger: Ledger) -> list[Event]:
    """The event at each tick, from tick 1 on.

    Raises:
        CannotFold: there are two events at one tick, which is not possible in a recording.
    """
    columns = ledger.columns
    happened: list[tuple[int, Event]] = []
    for number, (allocated, freed) in enumerate(
        zip(columns.allocated_tick.tolist(), columns.freed_tick.tolist(), strict=True)
    ):
        happened.append((allocated, Event("allocate", number)))
        if freed != NEVER:
            happened.append((freed, Event("free", number)))
    happened += [(mark.tick, Event("mark", number)) for number, mark in enumerate(ledger.marks)]
    happened += [(tick, Event("empty_cache")) for tick in ledger.empty_cache_ticks]
    events = [Event("nothing")] * ledger.ticks
    for tick, event in happened:
        if events[tick].kind != "nothing":
            raise CannotFold(f"there are two events at tick {tick}")
        events[tick] = event
    return events[1:]


_Run = tuple["int | None", "list[Event]"]


def _split_by_layer(events: list[Event], layers: EventLayers) -> list[_Run]:
    """Groups of successive events of the same layer. An event without a layer belongs to the current group."""
    runs: list[_Run] = []
    for tick, event in enumerate(events, start=1):
        if event.kind in ("mark", "empty_cache"):
            runs.append((None, [event]))
            continue
        layer = layers.at_tick.get(tick)
        if layer is None and event.kind != "nothing":
            layer = layers.of_allocation[event.number]
        elif layer == OUTSIDE:
            layer = None
        if runs and (layer is None or layer == runs[-1][0]):
            runs[-1][1].append(event)
        else:
            runs.append((layer, [event]))
    return runs


def _join_returns(runs: list[_Run]) -> list[_Run]:
    """Joins groups: while one layer runs and allocates, an allocation of another layer may be freed. This does not
    start a new group."""
    joined: list[_Run] = []
    for run in runs:
        ends_only = len(joined) > 1 and all(event.kind in ("free", "nothing") for event in joined[-1][1])
        at_work = ends_only and any(event.kind == "allocate" for event in (*joined[-2][1], *run[1]))
        if at_work and run[0] is not None and joined[-2][0] == run[0]:
            between = joined.pop()
            joined[-1][1].extend([*between[1], *run[1]])
        else:
            joined.append(run)
    return joined


def _find_passes(runs: list[_Run], repetition: Repetition) -> list[Once | LayerPass]:
    items: list[Once | LayerPass] = []
    start = 0
    while start < len(runs):
        if not repetition.is_repeated(runs[start][0]):
            items.append(Once(runs[start][1]))
            start += 1
            continue
        end = start
        while end < len(runs) and repetition.is_repeated(runs[end][0]):
            end += 1
        items.append(_make_pass(runs[start:end], repetition))
        start = end
    return items


def _make_pass(runs: list[_Run], repetition: Repetition) -> LayerPass:
    """A pass over all kept periods, one period after the other.

    Raises:
        CannotFold: the groups are not a whole number of periods in a row.
    """
    each, rest = divmod(len(runs), repetition.periods)
    numbers = [layer for layer, _ in runs if layer is not None]
    if rest:
        raise CannotFold(f"{len(runs)} groups of events are not a whole number of periods: {numbers}")
    steps = {later - earlier for earlier, later in zip(numbers, numbers[each:], strict=False)}
    if len(steps) != 1 or abs(step := steps.pop()) != repetition.period:
        raise CannotFold(f"the layers do not come one period after the other: {numbers}")
    parts = [runs[start : start + each] for start in range(0, len(runs), each)]
    periods = [[event for _, events in part for event in events] for part in parts]
    direction = 1 if step > 0 else -1
    first = min(numbers[:each] if direction > 0 else numbers[-each:])
    if first != repetition.first:
        raise CannotFold(f"a pass begins at layer {first}, not at {repetition.first}: {numbers}")
    return LayerPass(direction, periods if direction > 0 else periods[::-1])


# -- are the periods equal? -------------------------------------------------------------------------------------------


def _compare_periods(sections: Sections, columns: Columns, repetition: Repetition) -> None:
    """Raises `CannotFold` if the kept periods have different events."""
    names = [_relative_name(name, repetition) for name in columns.modules]
    facts = list(zip(columns.nbytes.tolist(), columns.kind.tolist(), columns.module.tolist(), strict=True))

    def describe(event: Event, period: int) -> tuple[object, ...]:
        if event.number < 0:
            return (event.kind,)
        nbytes, kind, module = facts[event.number]
        name, layer = names[module]
        return event.kind, nbytes, kind, name, None if layer is None else layer - period * repetition.period

    for item in sections.items:
        if not isinstance(item, LayerPass):
            continue
        model = [(describe(event, 1), _end_of(event, 1, sections)) for event in item.periods[1]]
        if any(event.kind == "free" and end is None for event, (_, end) in zip(item.periods[1], model, strict=True)):
            raise CannotFold("a repeated layer frees an allocation that no repeated layer made")
        for period, events in enumerate(item.periods):
            if len(events) != len(model):
                raise CannotFold(f"{len(model)} events in one period and {len(events)} in another")
            for event, (facts_1, end_1) in zip(events, model, strict=True):
                # a free of another layer's allocation is a weaker check: that layer may have another name
                found = describe(event, period)
                if found != facts_1 and not (event.kind == "free" and found[1:3] == facts_1[1:3]):
                    raise CannotFold(f"{facts_1} in one period is {found} in another")
                end = _end_of(event, period, sections)
                leaves = end is None and end_1 is not None and not 0 <= period + end_1.period < repetition.periods
                if end != end_1 and not leaves:
                    raise CannotFold(f"{facts_1} frees {end_1} in one period, and {end} in another")


def _end_of(event: Event, period: int, sections: Sections) -> Home | None:
    """For a free: the position of the allocation in its pass, with its period relative to this one. None if no pass
    made it."""
    home = sections.homes.get(event.number) if event.kind == "free" else None
    return home and home._replace(period=home.period - period)


def _relative_name(name: str, repetition: Repetition) -> tuple[str, int | None]:
    layer = repetition.layer_of(name)
    return (name, None) if layer is None else (repetition.renamed(name, 0), layer)
