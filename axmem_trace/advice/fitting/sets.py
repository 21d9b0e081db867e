"""Several changes together: finds the gentlest set that fits. Every set that is returned was estimated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from axmem_trace.advice.fitting.candidate import Change, Grade
from axmem_trace.advice.fitting.changes import describe_change, join
from axmem_trace.advice.fitting.questions import Answer, Questions
from axmem_trace.advice.fitting.singles import Rules, Say, Single, block
from axmem_trace.errors import ConfigError

MAX_CHANGES = 4
"""The largest number of changes in a set that is tried directly. The search for larger sets begins with all changes
together."""
MAX_TRIES = 4
"""The number of sets of one grade that are estimated before all changes are tried together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeSet:
    """Changes that were estimated together.

    Attributes:
        singles: the changes in it.
        change: all of them as one change.
    """

    singles: tuple[Single, ...]
    change: Change
    answer: Answer

    @property
    def grade(self) -> Grade:
        """The grade of the hardest change in it."""
        return max(single.grade for single in self.singles)


def find_gentlest(questions: Questions, singles: Sequence[Single], rules: Rules, say: Say) -> ChangeSet | None:
    """The set with the lowest grade that fits, then with the fewest changes, then with the most free memory.

    The savings of single changes only determine which sets are tried first. The result needs each of its changes. If
    its free memory is less than the error of the figures, it is only returned if there is no better set.
    """
    search = _Search(questions, rules, say)
    usable = [single for single in singles if not single.blocked and single.saved_bytes >= 0]
    for grade in Grade:
        pool = [single for single in usable if single.grade <= grade]
        if any(single.grade == grade for single in pool):
            found = search.within(pool)
            if found is not None:
                return found
    return search.tight


class _Search:
    def __init__(self, questions: Questions, rules: Rules, say: Say) -> None:
        self._questions, self._rules, self._say = questions, rules, say
        self.tight: ChangeSet | None = None
        """The first set whose verdict is `tight`."""

    def within(self, pool: Sequence[Single]) -> ChangeSet | None:
        """The gentlest set of some changes; None if all together don't fit."""
        alone = [single for single in pool if single.answer.is_safe]
        if alone:
            best = max(alone, key=lambda single: (-single.grade, single.saved_bytes))
            return ChangeSet(singles=(best,), change=best.change, answer=best.answer)
        for tried, chosen in enumerate(self._promising(pool)):
            if tried == MAX_TRIES:
                break
            found = self._estimate(chosen)
            if found is not None and found.answer.is_safe:
                return self._without_spare(found)
        helpful = [single for single in pool if single.saved_bytes > 0]
        for chosen in (_best_of_each_group(helpful), _best_of_each_group(pool)):
            found = self._estimate(chosen)
            if found is not None and found.answer.is_safe:
                return self._without_spare(found)
        return None

    def _promising(self, pool: Sequence[Single]) -> Iterator[tuple[Single, ...]]:
        """Sets for which the sum of the single savings is enough, the gentlest first."""
        short_by = -self._questions.as_it_is.left_bytes
        helpful = sorted((single for single in pool if single.saved_bytes > 0), key=lambda single: -single.saved_bytes)
        for number in range(2, MAX_CHANGES + 1):
            sets = [
                chosen
                for chosen in combinations(helpful, number)
                if len({single.candidate.group for single in chosen}) == number
                and sum(single.saved_bytes for single in chosen) > short_by
            ]
            sets.sort(
                key=lambda chosen: (
                    max(each.grade for each in chosen),
                    sum(each.grade for each in chosen),
                    -sum(each.saved_bytes for each in chosen),
                )
            )
            yield from sets

    def _estimate(self, singles: Sequence[Single]) -> ChangeSet | None:
        """Estimates changes together. Each change is proposed again for the configuration with the changes before it.
        None if one of them can't be proposed."""
        whole = Change()
        for single in singles:
            again = self._again(single, whole)
            if again is None:
                return None
            whole = join(whole, again)
        self._say(describe_change(whole, self._questions.situation().values))
        found = ChangeSet(singles=tuple(singles), change=whole, answer=self._questions.ask(whole))
        if found.answer.runs and self.tight is None:
            self.tight = found
        return found if found.answer.runs else None

    def _again(self, single: Single, before: Change) -> Change | None:
        try:
            situation = self._questions.situation(before)
        except ConfigError:
            return None
        changes = [*single.candidate.propose(situation)]
        same = [change for change in changes if _aims_at(change, single.change)]
        chosen = same[0] if same else None
        if chosen is None or block(single.candidate, chosen, situation, self._rules):
            return None
        return chosen

    def _without_spare(self, found: ChangeSet) -> ChangeSet:
        """The set without the changes that it does not need. The hardest are left out first."""
        for single in sorted(found.singles, key=lambda each: (-each.grade, each.saved_bytes)):
            rest = tuple(each for each in found.singles if each is not single)
            if len(rest) < 2:
                continue
            smaller = self._estimate(rest)
            if smaller is not None and smaller.answer.is_safe:
                found = smaller
        return found


def _best_of_each_group(pool: Sequence[Single]) -> tuple[Single, ...]:
    best: dict[str, Single] = {}
    for single in pool:
        group = single.candidate.group
        if group not in best or single.saved_bytes > best[group].saved_bytes:
            best[group] = single
    return tuple(best.values())


def _aims_at(change: Change, other: Change) -> bool:
    """Whether it is the same change. Lists (`plugins`) and accumulation steps may differ."""
    free = ("plugins", "gradient_accumulation_steps")
    mine, others = ({key: value for key, value in each.settings.items() if key not in free} for each in (change, other))
    return mine == others and (change.num_gpus, change.environment) == (other.num_gpus, other.environment)
