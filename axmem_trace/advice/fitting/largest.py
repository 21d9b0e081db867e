"""The largest micro batch and the longest sequence that fit. The next larger value of each does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from axmem_trace.advice.fitting.candidate import Change
from axmem_trace.advice.fitting.changes import join
from axmem_trace.advice.fitting.questions import Answer, Questions
from axmem_trace.advice.fitting.singles import Say

MAX_SEQUENCE_LEN = 1 << 20
"""Larger values are not tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Largest:
    """The largest value of a key that fits.

    Attributes:
        value: the largest value; 0: even the smallest does not fit.
        need_bytes: the needed bytes with this value.
        next_need_bytes: the needed bytes with the next value, which does not fit; 0: larger values were not tried, or
            are impossible.
        next_refusal: why the run with the next value is impossible.
        is_limit: whether the largest value that may be tried fits.
    """

    key: str
    value: int
    need_bytes: int = 0
    next_need_bytes: int = 0
    next_refusal: str = ""
    is_limit: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A key whose largest value is searched.

    Attributes:
        current: the value in the configuration.
        most: no larger value is tried.
    """

    key: str
    current: int
    most: int


def find_largest(questions: Questions, change: Change, wanted: Sequence[Wanted], say: Say) -> list[Largest]:
    """The largest value of each key with which the run fits, after a change.

    This value and the next one were both estimated. Memory grows with each key, so no larger value fits. The searches
    run in parallel, so that their estimates can be made at the same time.
    """
    answers: dict[tuple[str, int], Answer] = {}

    def changed(key: str, value: int) -> Change:
        return join(change, Change(settings={key: value}))

    def ask(key: str, value: int) -> Answer:
        if (key, value) not in answers:
            say(f"{key}: {value}")
            answers[key, value] = questions.ask(changed(key, value))
        return answers[key, value]

    memory_bytes = questions.report.gpu.memory_bytes - questions.report.gpu.margin_bytes
    searches = {
        each.key: _search(partial(ask, each.key), memory_bytes, max(1, min(each.current, each.most)), each.most)
        for each in wanted
    }
    open_searches = dict(searches)
    while open_searches:
        found = {key: next(search, []) for key, search in open_searches.items()}
        questions.prefetch([changed(key, value) for key, values in found.items() for value in values])
        open_searches = {key: open_searches[key] for key, values in found.items() if values}
    return [_describe(partial(ask, each.key), each, answers) for each in wanted]


def _describe(ask: Callable[[int], Answer], wanted: Wanted, answers: dict[tuple[str, int], Answer]) -> Largest:
    key, runs = wanted.key, [value for (key, value), answer in answers.items() if key == wanted.key and answer.runs]
    if not runs:
        return Largest(key=key, value=0, next_need_bytes=ask(1).need_bytes, next_refusal=ask(1).refusal)
    value = max(runs)
    if value == wanted.most:
        return Largest(key=key, value=value, need_bytes=ask(value).need_bytes, is_limit=True)
    beyond = ask(value + 1)
    return Largest(
        key=key,
        value=value,
        need_bytes=ask(value).need_bytes,
        next_need_bytes=beyond.need_bytes,
        next_refusal=beyond.refusal,
    )


def _search(ask: Callable[[int], Answer], memory_bytes: int, current: int, most: int) -> Iterator[list[int]]:
    """Tries values until one fits and the next one does not. Yields the values that it may try next, in ascending
    order.

    First, two values on both sides of a linear guess are tried; after that, two values that divide the remaining range
    into three parts. Memory often grows in steps at multiples of a power of two, so the values nearby that are
    divisible by the highest power of two are used.
    """
    low, high = 0, most + 1
    known: dict[int, Answer] = {}
    probes = sorted({current, min(2 * current, most)})
    apart = 0
    while True:
        yield probes
        for value in probes:
            answer = known[value] = ask(value)
            low, high = (value, high) if answer.runs else (low, value)
            if not answer.runs:
                break
        if high - low <= 1:
            return
        apart = 2 * apart or max(1, low // 32)
        guess = _on_the_line(known, memory_bytes)
        probes = _choose(low, high, guess, apart, most)


def _choose(low: int, high: int, guess: int | None, apart: int, most: int) -> list[int]:
    """One or two values between the last value that fits and the first that does not."""
    if high > most:
        guess = 2 * low if guess is None else max(guess, low + apart)
    inside = range(low + 1, high)
    if guess is not None and high - low > 2 * apart:
        ends = (guess - apart // 2, guess + apart // 2 + 1)
        values = {_roundest(end - apart // 4, end) for end in ends}
    else:
        third = (high - low) // 3
        values = {_roundest(low + max(1, third // 2), low + max(1, third + third // 2)), high - max(1, third)}
        values = {*values, min(values) + 1}
    return sorted({min(max(value, low + 1), high - 1) for value in values} & set(inside))[:2]


def _roundest(first: int, last: int) -> int:
    """The number from `first` to `last` that is divisible by the highest power of two."""
    for bits in range(max(last, 1).bit_length(), -1, -1):
        number = last >> bits << bits
        if number >= max(first, 1):
            return number
    return max(last, 1)


def _on_the_line(known: dict[int, Answer], memory_bytes: int) -> int | None:
    """The value that fills the memory, by linear extrapolation. Tensors are assumed to grow as between the smallest and
    the largest known value. The allocator is assumed to add as many bytes as for the value with the nearest need."""
    figures = {value: answer for value, answer in known.items() if answer.need_bytes}
    if len(figures) < 2:
        return None
    first, last = min(figures), max(figures)
    grows = figures[last].live_bytes - figures[first].live_bytes
    if grows <= 0:
        return None
    nearest = min(figures, key=lambda value: abs(figures[value].need_bytes - memory_bytes))
    return int(nearest + (memory_bytes - figures[nearest].need_bytes) * (last - first) / grows)
