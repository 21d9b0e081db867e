"""Which cards a run fits: every card and MIG slice, with one estimate for each generation wherever that decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from axmem_trace.advice.largest_batch import LargestBatch
from axmem_trace.catalogue.cards import Card
from axmem_trace.errors import ConfigError
from axmem_trace.lengths.when import MORE_AT_MOST
from axmem_trace.report import Report
from axmem_trace.report.accuracy import EXPANDABLE
from axmem_trace.report.verdict import Verdict, bytes_besides_activations, judge, name_verdict
from axmem_trace.units import GIB


class RunRefused(Exception):
    """The run can't run on this card, as the configuration alone shows; the message says why."""


EstimateOn = Callable[[str], Report]
"""The run's report on the card of a name. Raises `RunRefused`, or ConfigError if there are no figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFit:
    """A card, and the result of the run on one or several of it.

    Attributes:
        count: how many of the card; 0: as many as the options or the configuration say.
        verdict: as in a report; empty where the run can't be estimated on this card (`reason`).
        need_bytes: of the whole card, CUDA context included.
        left_bytes: negative if it does not fit.
        reason: why the run can't run on cards of this generation, or why there is no verdict.
        error: why this card has no figures; None if there are some.
        largest: the largest micro batch that fits; None: not looked for, or it can't be known.
    """

    card: Card
    count: int = 0
    verdict: Verdict
    need_bytes: int = 0
    left_bytes: int = 0
    reason: str = ""
    error: ConfigError | None = None
    largest: LargestBatch | None = None

    @property
    def fits(self) -> bool:
        """True if the run fits, also if only just."""
        return self.verdict in ("fits with room", "fits", "tight")


def fit_cards(cards: Iterable[Card], estimate_on: EstimateOn) -> list[CardFit]:
    """All cards by memory, smallest first.

    The needed memory depends on the card's compute capability (its kernels) and, if the allocator reaches the limit, on
    its memory. So the largest card of each capability is estimated. Another card with this capability is estimated
    separately only if live bytes would fit, but the cached ones of the larger card would not.

    Raises:
        ConfigError: no card has figures, and the reason is the same for all: the configuration.
    """
    groups: dict[tuple[int, int], list[Card]] = {}
    for card in cards:
        groups.setdefault(card.capability, []).append(card)
    found = [fit for group in groups.values() for fit in _fit_group(group, estimate_on)]
    errors = {str(fit.error): fit.error for fit in found}
    for error in errors.values():
        if error and len(errors) == 1:
            raise error
    return sorted(found, key=lambda fit: (fit.card.gib, fit.card.capability))


def join_counts(
    found: Sequence[list[CardFit] | ConfigError], cards: Sequence[Card], counts: Sequence[int]
) -> list[CardFit]:
    """What `fit_cards` found for each number of cards, in the order of `counts`.

    Raises:
        ConfigError: no number has figures, and the reason is the same for all: the configuration.
    """
    errors = [each for each in found if isinstance(each, ConfigError)]
    if len(errors) == len(counts) and len({str(error) for error in errors}) == 1:
        raise errors[0]
    fits: list[CardFit] = []
    for count, each in zip(counts, found, strict=True):
        if isinstance(each, ConfigError):
            each = [CardFit(card=card, verdict="", reason=each.problem, error=each) for card in cards]
        fits += [replace(fit, count=count) for fit in each]
    return fits


def num_shown(num_counts: int) -> int:
    """How many card sizes that fit are shown for each of several numbers of cards; larger cards fit as well."""
    return 20 if num_counts == 1 else 8


def figures(fit: CardFit) -> tuple[float, int]:
    """Cards that have these in common share a line."""
    return fit.card.gib, fit.need_bytes


def merge_equal(fits: Sequence[CardFit]) -> list[CardFit]:
    """The first of the cards with equal figures."""
    return [*{figures(fit): fit for fit in reversed(fits)}.values()][::-1]


def smallest(fits: Sequence[CardFit]) -> CardFit | None:
    """The card with the least memory that the run fits."""
    return next((fit for fit in fits if fit.fits), None)


def _fit_group(cards: list[Card], estimate_on: EstimateOn) -> list[CardFit]:
    largest = max(cards, key=lambda card: card.gib)
    try:
        report = estimate_on(largest.name)
    except RunRefused as refused:
        return [CardFit(card=card, verdict="", reason=str(refused)) for card in cards]
    except ConfigError as error:
        return [CardFit(card=card, verdict="", reason=error.problem, error=error) for card in cards]
    if report.refusals:
        return [_fit(card, report) for card in cards]
    counted_bytes = max([report.peak.counted_bytes, *(use.counted_bytes for use in report.ranks)])
    live_bytes = counted_bytes + report.peak.context_bytes + report.peak.nccl_bytes
    by_memory: dict[int, Report] = {}
    for card in cards:
        memory_bytes = round(card.gib * GIB)
        undecided = live_bytes <= memory_bytes < _could_need(report)
        if undecided and card is not largest and memory_bytes not in by_memory:
            by_memory[memory_bytes] = estimate_on(card.name)
    return [_fit(card, by_memory.get(round(card.gib * GIB), report)) for card in cards]


def _fit(card: Card, report: Report) -> CardFit:
    if report.refusals:
        return CardFit(card=card, verdict="", reason=report.refusals[0].reason)
    memory_bytes = round(card.gib * GIB)
    need_bytes = _need_bytes(report)
    other_rank_fails = bool(report.ranks) and report.fits is False
    fails = (report.out_of_memory is not None or other_rank_fails) and report.gpu.memory_bytes <= memory_bytes
    margin_bytes = round(report.gpu.margin_share * memory_bytes) or report.gpu.margin_bytes
    within = bytes_besides_activations(report.buckets) <= memory_bytes
    fits, why = judge(
        need_bytes + margin_bytes <= memory_bytes and not fails,
        report.notes,
        fits_without_activations=within,
        free_bytes=memory_bytes - need_bytes - margin_bytes,
    )
    verdict = name_verdict(
        fits,
        why,
        memory_bytes - need_bytes,
        memory_bytes,
        tight_share=report.accuracy.tight_share,
    )
    return CardFit(card=card, verdict=verdict, need_bytes=need_bytes, left_bytes=memory_bytes - need_bytes, reason=why)


def _could_need(report: Report) -> int:
    """What a smaller card may have to have: more, where batches that differ in length were not simulated."""
    if all(note.key != "lengths" for note in report.notes):
        return _need_bytes(report)
    grows = report.accuracy.kind.allocator == EXPANDABLE
    return int((1 + MORE_AT_MOST["expandable" if grows else "default"]) * _need_bytes(report))


def _need_bytes(report: Report) -> int:
    """Of a whole card, by the rank that needs the most; with an inference engine on the same card, of both."""
    return report.needed_bytes
