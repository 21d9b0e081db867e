"""Computes the facts of a whole model from those of a short one. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.folding.unfold import MODEL
from axmem_trace.model_facts import ModelFacts


class Named(Protocol):
    """A tensor or module; its name says in which layer it is."""

    @property
    def name(self) -> str:
        """The dotted name."""


Row = TypeVar("Row", bound=Named)


def unfold_facts(facts: ModelFacts, repetition: Repetition) -> ModelFacts:
    """The facts with the tensors and modules of the missing layers inserted, in the order of the whole model."""
    tensors = unfold_rows(
        facts.tensors,
        repetition,
        lambda row, layer: replace(
            row, name=repetition.renamed(row.name, layer), module=repetition.renamed(row.module, layer)
        ),
    )
    modules = unfold_rows(
        facts.modules, repetition, lambda row, layer: replace(row, name=repetition.renamed(row.name, layer))
    )
    return replace(facts, tensors=tensors, modules=modules)


def unfold_rows(rows: Sequence[Row], repetition: Repetition, renamed: Callable[[Row, int], Row]) -> tuple[Row, ...]:
    """The rows, in which each range of repeated layers also has the missing periods: copies of the second period.

    Args:
        rows: objects with a `name`, in the order of the layers.
        renamed: returns the same row of another layer.

    Raises:
        CannotFold: the rows are not in the order of the layers.
    """
    result: list[Row] = []
    position, behind = 0, repetition.period * repetition.missing
    while position < len(rows):
        layer = repetition.layer_of(rows[position].name)
        if not repetition.is_repeated(layer):
            row = rows[position]
            result.append(renamed(row, layer + behind) if layer is not None and layer >= repetition.last else row)
            position += 1
            continue
        end = position
        while end < len(rows) and repetition.is_repeated(repetition.layer_of(rows[end].name)):
            end += 1
        result.extend(_unfold_range(rows[position:end], repetition, renamed))
        position = end
    return tuple(result)


def _unfold_range(rows: Sequence[Row], repetition: Repetition, renamed: Callable[[Row, int], Row]) -> list[Row]:
    periods: list[list[Row]] = [[] for _ in range(repetition.periods)]
    order: list[int] = []
    for row in rows:
        layer = repetition.layer_of(row.name)
        assert layer is not None
        order.append((layer - repetition.first) // repetition.period)
        periods[order[-1]].append(row)
    if order != sorted(order):
        raise CannotFold("the model's tensors are not ordered layer by layer")
    result = [row for period in periods[:MODEL] for row in period]
    for times in range(repetition.missing + 1):
        result += [_shifted(row, times * repetition.period, repetition, renamed) for row in periods[MODEL]]
    for period in periods[MODEL + 1 :]:
        behind = repetition.missing * repetition.period
        result += [_shifted(row, behind, repetition, renamed) for row in period]
    return result


def _shifted(row: Row, by: int, repetition: Repetition, renamed: Callable[[Row, int], Row]) -> Row:
    layer = repetition.layer_of(row.name)
    assert layer is not None
    return renamed(row, layer + by)
