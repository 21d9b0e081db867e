"""Each change by itself: its figures, and the reason if it may not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.advice.fitting.changes import describe_change
from axmem_trace.advice.fitting.questions import Answer, Questions

Say = Callable[[str], None]
"""Called with a description of the next estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The changes that the user permits.

    Attributes:
        allow: words of candidates, or keys, that may be used although they change what the model learns, or a value
            that the user set.
        keep: keys that must not be changed.
    """

    allow: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Single:
    """One change.

    Attributes:
        words: the old and new values in words.
        blocked: why a set does not use it; empty if it may be used.
        saved_bytes: the saved bytes; negative if the change needs more.
    """

    candidate: Candidate
    change: Change
    answer: Answer
    words: str
    blocked: str
    saved_bytes: int

    @property
    def cost(self) -> str:
        """In words."""
        return self.change.cost or self.candidate.cost

    @property
    def grade(self) -> Grade:
        """The candidate's grade; harder if this change also changes what the model learns."""
        return Grade.LEARNING if self.change.allow else self.candidate.grade


def try_singles(questions: Questions, candidates: Sequence[Candidate], rules: Rules, say: Say) -> list[Single]:
    """Every change of these candidates that has an effect on this run, in the order of the candidates."""
    situation = questions.situation()
    proposed = [(each, propose_steps(each, situation, questions, rules)) for each in candidates]
    slow_first = sorted(proposed, key=lambda each: not each[0].slow)
    say(f"{sum(len(changes) for _, changes in proposed)} changes, each by itself")
    questions.prefetch([change for each, changes in slow_first for change in _first_asked(each, changes)])
    return [single for each, changes in proposed for single in _try(each, changes, situation, questions, rules, say)]


def propose_steps(candidate: Candidate, situation: Situation, questions: Questions, rules: Rules) -> list[Change]:
    """The changes of a candidate that have an effect. If they are steps, only the permitted ones, if there are any."""
    changes = [change for change in candidate.propose(situation) if not questions.changes_nothing(change)]
    permitted = [change for change in changes if not block(candidate, change, situation, rules)]
    return permitted if candidate.steps and permitted else changes


def block(candidate: Candidate, change: Change, situation: Situation, rules: Rules) -> str:
    """The reason why the user's settings forbid a change; empty if they allow it."""
    kept = [key for key in change.settings if key in rules.keep and situation.values.get(key) != change.settings[key]]
    if kept:
        return f"--keep {kept[0]}"
    for word in (candidate.allow, change.allow):
        if word and word not in rules.allow:
            return f"it changes what is learned; --allow {word} permits it"
    if candidate.allow:
        return ""
    for key, value in change.settings.items():
        if situation.values.get(key) is False and value and not {key, candidate.name} & rules.allow:
            return f"you set `{key}: false`; --allow {key} permits it"
    return ""


def _try(
    candidate: Candidate,
    changes: Sequence[Change],
    situation: Situation,
    questions: Questions,
    rules: Rules,
    say: Say,
) -> Iterator[Single]:
    def ask(change: Change) -> Single:
        words = describe_change(change, situation.values)
        say(words)
        answer = questions.ask(change)
        saved = questions.as_it_is.need_bytes - answer.need_bytes if answer.need_bytes else 0
        blocked = block(candidate, change, situation, rules) or _refused(answer)
        return Single(
            candidate=candidate, change=change, answer=answer, words=words, blocked=blocked, saved_bytes=saved
        )

    if candidate.steps:
        yield from _first_step_that_fits(changes, ask)
    else:
        yield from map(ask, changes)


def _refused(answer: Answer) -> str:
    if answer.refusal:
        return answer.refusal
    return "" if answer.need_bytes else answer.why


def _first_asked(candidate: Candidate, changes: Sequence[Change]) -> Sequence[Change]:
    """All alternatives; of steps the last, and if a set may use it soon, the middle one, which `_first_step_that_fits` asks
    for next."""
    if not candidate.steps:
        return changes
    in_the_middle = [] if candidate.slow or candidate.allow else changes[(len(changes) - 1) // 2 :][:1]
    return [*changes[-1:], *in_the_middle]


def _first_step_that_fits(steps: Sequence[Change], ask: Callable[[Change], Single]) -> Iterable[Single]:
    """The gentlest step that fits by itself; if none does, the last one."""
    if not steps:
        return []
    last = ask(steps[-1])
    if not last.answer.is_safe:
        return [last]
    low, high, found = 0, len(steps) - 1, last
    while low < high:
        middle = (low + high) // 2
        tried = ask(steps[middle])
        if tried.answer.is_safe:
            high, found = middle, tried
        else:
            low = middle + 1
    return [found]
