"""For every card, and for several of each: whether the run fits, and its largest micro batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from axmem_trace.advice.cards import CardFit, fit_cards, join_counts, merge_equal, num_shown, smallest
from axmem_trace.advice.largest_batch import BatchSearch
from axmem_trace.advice.processes import call_in_processes
from axmem_trace.catalogue.cards import Card
from axmem_trace.errors import ConfigError
from axmem_trace.estimation import record_ledgers
from axmem_trace.ledger import Ledger
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report import Report
from axmem_trace.training.shared_traces import traces_shared


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A configuration on cards.

    Attributes:
        estimate_on: returns its report for the name of a card and a number of cards; see `EstimateOn`.
        recipe_on: returns its recipe for the same, and for another micro batch if that is not 0.
        micro_batch: the micro batch of the configuration; 0: it has none, so there is no search for the largest.
    """

    estimate_on: Callable[[str, int], Report]
    recipe_on: Callable[[str, int, int], Recipe]
    micro_batch: int


Found = list[CardFit] | ConfigError


def fit_table(
    run: Run, cards: Sequence[Card], counts: Sequence[int], *, everything: bool, workers: int = 1
) -> list[CardFit]:
    """`fit_cards` for each number of cards, with the largest micro batch.

    Args:
        everything: whether to find the largest micro batch for all cards, and not only for those that are shown without
            `--all`.
        workers: processes that may work at the same time.

    Raises:
        ConfigError: there are no figures for any number of cards, for the same reason in the configuration.
    """
    tasks = _divide(run, cards, counts)
    table = _Table(run, cards, None if everything else num_shown(len(counts)))
    found = (
        call_in_processes(lambda number: table.fit(tasks[number]), len(tasks), workers)
        if workers > 1 and len(tasks) > 1
        else [table.fit(each) for each in tasks]
    )
    by_count = {
        count: each
        for task, results in zip(tasks, found, strict=True)
        for count, each in zip(task, results, strict=True)
    }
    return join_counts([by_count[count] for count in counts], cards, counts)


def _divide(run: Run, cards: Sequence[Card], counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Groups of numbers of cards that share traces: all numbers that use DDP are one group."""
    together: dict[object, list[int]] = {}
    for count in counts:
        try:
            engine = run.recipe_on(cards[0].name, count, 0).parallel.engine
        except ConfigError:
            engine = "none"
        together.setdefault(engine if engine == "ddp" else count, []).append(count)
    return [tuple(each) for each in together.values()]


@dataclass(frozen=True, slots=True)
class _Table:
    run: Run
    cards: Sequence[Card]
    most_shown: int | None

    def fit(self, counts: Sequence[int]) -> list[Found]:
        """One result for each number of cards."""
        with traces_shared():
            searches: dict[tuple[int, ...], BatchSearch] = {}
            return [self._fit_count(count, searches) for count in counts]

    def _fit_count(self, count: int, searches: dict[tuple[int, ...], BatchSearch]) -> Found:
        try:
            fits = fit_cards(self.cards, lambda name: self.run.estimate_on(name, count))
        except ConfigError as error:
            return error
        if not self.run.micro_batch:
            return fits
        marked = smallest(fits)
        wanted = fits if self.most_shown is None else merge_equal([fit for fit in fits if fit.fits])[: self.most_shown]
        wanted_names = {fit.card.name for fit in wanted if fit.verdict not in ("", "cannot say")}
        return [
            self._with_largest(fit, count, searches, recorded=fit is marked) if fit.card.name in wanted_names else fit
            for fit in fits
        ]

    def _with_largest(
        self, fit: CardFit, count: int, searches: dict[tuple[int, ...], BatchSearch], *, recorded: bool
    ) -> CardFit:
        run, name = self.run, fit.card.name
        recipe = run.recipe_on(name, count, 0)
        if recipe.objective.rollouts is not None:  # rollouts, or an engine on the same card, depend on other sizes
            return fit
        ledgers = record_ledgers(recipe)
        search = searches.get(key := tuple(map(id, ledgers)))
        if search is None:
            known = {run.micro_batch: ledgers}

            def record(rows: int) -> Sequence[Ledger]:
                return known.get(rows) or record_ledgers(run.recipe_on(name, count, rows))

            search = searches[key] = BatchSearch(record, run.micro_batch)
        return replace(fit, largest=search.largest(recipe, recorded=recorded))
