"""The largest micro batch and the longest sequence that fit, each with the next larger one, which does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from axmem_trace.advice.fitting.candidate import Change
from axmem_trace.advice.fitting.changes import join
from axmem_trace.advice.fitting.questions import Answer, Questions
from axmem_trace.advice.fitting.singles import Say

MAX_MICRO_BATCH = 4096
MAX_SEQUENCE_LEN = 1 << 20
"""Larger values are not looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Largest:
    """The largest value of a key that fits.

    Attributes:
        value: 0: not even the smallest fits.
        need_bytes: with this value.
        next_need_bytes: with the value after it, which does not fit; 0: larger values were not looked for, or can't run.
        next_refusal: why the value after it can't run.
        is_limit: the largest value that is looked for fits.
    """

    key: str
    value: int
    need_bytes: int = 0
    next_need_bytes: int = 0
    next_refusal: str = ""
    is_limit: bool = False


def find_largest(questions: Questions, change: Change, key: str, current: int, most: int, say: Say) -> Largest:
    """The largest value of a key with which the run fits, after a change.

    It holds for this value and the next one, which were both estimated: memory grows with either key.

    Args:
        current: the value that the configuration has.
        most: no larger value is tried.
    """
    answers: dict[int, Answer] = {}

    def ask(value: int) -> Answer:
        if value not in answers:
            say(f"{key}: {value}")
            answers[value] = questions.ask(join(change, Change(settings={key: value})))
        return answers[value]

    def prefetch(*values: int) -> None:
        new = [value for value in values if value not in answers and 0 < value <= most]
        questions.prefetch([join(change, Change(settings={key: value})) for value in new])

    value = _search(ask, prefetch, questions.report.gpu.memory_bytes - questions.report.gpu.margin_bytes, current, most)
    if not value:
        return Largest(key=key, value=0, next_need_bytes=ask(1).need_bytes, next_refusal=ask(1).refusal)
    if value == most:
        return Largest(key=key, value=value, need_bytes=ask(value).need_bytes, is_limit=True)
    beyond = ask(value + 1)
    return Largest(key=key, value=value, need_bytes=ask(value).need_bytes, next_need_bytes=beyond.need_bytes,
                   next_refusal=beyond.refusal)  # fmt: skip


def _search(
    ask: Callable[[int], Answer], prefetch: Callable[..., None], memory_bytes: int, current: int, most: int
) -> int:
    """The last value that fits before one that doesn't: guesses along a straight line, then steps that double."""
    low, high, reach = 0, most + 1, 1
    known: dict[int, int] = {}
    guess = min(max(1, current), most)
    prefetch(guess, 2 * guess)
    while high - low > 1:
        if known:
            prefetch(guess, guess + 1)
        answer = ask(guess)
        if answer.need_bytes:
            known[guess] = answer.live_bytes
        low, high = (guess, high) if answer.runs else (low, guess)
        straight = _on_the_line(known, memory_bytes)
        if straight is None:
            guess = 2 * low if high > most else (low + high) // 2
        elif low < straight < high:
            guess, reach = straight, 1
        else:
            guess, reach = (low + reach if straight <= low else high - reach), 2 * reach
        if not low < guess < high:
            guess = (low + high) // 2
    return low


def _on_the_line(known: dict[int, int], memory_bytes: int) -> int | None:
    """The value that fills the memory, if it grows as between the two known values nearest to it."""
    nearest = sorted(known, key=lambda value: abs(known[value] - memory_bytes))[:2]
    if len(nearest) < 2:
        return None
    first, second = sorted(nearest)
    grows = known[second] - known[first]
    if grows <= 0:
        return None
    return int(first + (memory_bytes - known[first]) * (second - first) / grows)
