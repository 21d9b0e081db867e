"""The cards and MIG slices that a run fits. One estimate for each generation of cards, if that is enough for the
answer."""

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
    """The configuration already shows that the run is impossible on this card; the message says why."""


EstimateOn = Callable[[str], Report]
"""Returns the run's report for the name of a card. Raises `RunRefused`, or ConfigError if there are no figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFit:
    """A card, and the result of the run on one or several of it.

    Attributes:
        count: the number of cards; 0: as in the options or the configuration.
        verdict: as in a report; empty if the run can't be estimated on this card (`reason`).
        need_bytes: needed bytes of the card, including the CUDA context.
        left_bytes: free bytes of the card; negative if the run does not fit.
        reason: why the run is impossible on cards of this generation, or why there is no verdict.
        error: why there are no figures for this card; None if there are figures.
        largest: the largest micro batch that fits; None: there was no search for it, or it can't be known.
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
        """True if the run fits, also if the verdict is `tight`."""
        return self.verdict in ("fits with room", "fits", "tight")


def fit_cards(cards: Iterable[Card], estimate_on: EstimateOn) -> list[CardFit]:
    """The result for each card, sorted by memory, smallest first.

    The needed memory depends on the card's compute capability (its kernels) and, if the allocator reaches the limit, on
    its memory. So the largest card of each capability is estimated. Another card with this capability is estimated
    separately only if live bytes would fit, but the cached ones of the larger card would not.

    Raises:
        ConfigError: there are no figures for any card, for the same reason in the configuration.
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
    """The results of `fit_cards` for each number of cards, in the order of `counts`.

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
    """How many card sizes that fit are shown for each number of cards, if there are several numbers. Larger cards fit
    too."""
    return 20 if num_counts == 1 else 8


def figures(fit: CardFit) -> tuple[float, int]:
    """Figures of a card; cards with equal figures share a line."""
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
    """The memory that a smaller card may need: more, if batches of different lengths were not simulated."""
    if all(note.key != "lengths" for note in report.notes):
        return _need_bytes(report)
    grows = report.accuracy.kind.allocator == EXPANDABLE
    return int((1 + MORE_AT_MOST["expandable" if grows else "default"]) * _need_bytes(report))


def _need_bytes(report: Report) -> int:
    """The needed bytes of a card, for the rank that needs the most; with an inference engine on the same card, for
    both."""
    return report.needed_bytes
