"""The result of `fit` as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from axmem_trace.render.describe import describe_moment
from axmem_trace.units import format_bytes, gib

if TYPE_CHECKING:
    from axmem_trace.advice.fitting.fit import Fit
    from axmem_trace.advice.fitting.largest import Largest
    from axmem_trace.advice.fitting.singles import Single

NUM_HOLDERS = 3
WORDS_WIDTH = 36
MIN_COST_WIDTH = 20
_wrap = partial(textwrap.wrap, break_on_hyphens=False)
"""Names of keys and packages stay whole."""


def render_fit(fit: Fit, width: int = 80) -> str:
    """How much memory is missing and where, each change, the gentlest set, the largest sizes."""
    took = [f"{fit.num_estimates} runs estimated in {fit.seconds:.1f} s"]
    before, after = [_state(fit)], [_blocked(fit), _chosen(fit), _largest(fit), took]
    parts = [
        *(_within(width, each) for each in before),
        _singles(fit, width),
        *(_within(width, each) for each in after),
    ]
    return "\n".join("".join(f"{line}\n" for line in part) for part in map(list, parts) if part)


def _within(width: int, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())] + "  "
        yield from [line] if len(line) <= width else _wrap(line, width, subsequent_indent=indent)


def _state(fit: Fit) -> Iterator[str]:
    report, answer = fit.report, fit.as_it_is
    gpu = report.gpu
    cards = f"{gpu.count} x {gpu.name}" if gpu.count > 1 else gpu.name
    margin = f" less {format_bytes(fit.margin_bytes)} margin" if fit.margin_bytes else ""
    need, size = format_bytes(answer.need_bytes), format_bytes(gpu.memory_bytes)
    yield f"{report.run.get('config', '')}: needs {need}; {cards} has {size}{margin}"
    left = answer.left_bytes - fit.margin_bytes
    for refusal in report.refusals:
        yield f"this run can't run: {refusal.reason}"
    if fit.cure is not None:
        yield f"from here on with {', '.join(f'{key}: {value}' for key, value in fit.cure.settings.items())}"
    if report.why:
        yield f"cannot say whether it fits: {report.why}"
    if left < 0:
        yield f"short by {format_bytes(-left)} in {describe_moment(answer.phase, answer.step)} ({answer.holder})"
    elif answer.runs:
        words = "less than the error of our figures" if answer.verdict == "tight" else answer.verdict
        yield f"it fits as it is, {format_bytes(left)} left ({words})"
    elif not report.why:
        yield "the last allocations fail, because free memory is in pieces"
    holders = ", ".join(f"{each.name} {format_bytes(each.bytes)}" for each in report.holders[:NUM_HOLDERS])
    yield f"at the peak: {holders}"


def _singles(fit: Fit, width: int) -> Iterator[str]:
    estimated = (each for each in fit.singles if each.answer.need_bytes)
    shown = sorted(estimated, key=lambda each: (each.grade, -each.saved_bytes))
    if not shown:
        return
    yield f"{'one change at a time':{WORDS_WIDTH}} {'needs':>7} {'saves':>7}  fits  costs"
    for single in shown:
        answer = single.answer
        fits = {True: "yes", False: "no", None: "?"}[answer.fits] if not answer.refusal else "no"
        words = _wrap(single.words, WORDS_WIDTH, subsequent_indent="  ") or [""]
        cost = _wrap(_cost(fit, single), max(MIN_COST_WIDTH, width - WORDS_WIDTH - 24)) or [""]
        figures = f"{gib(answer.need_bytes):>7.2f} {gib(single.saved_bytes):>7.2f}  {fits:4}"
        for index in range(max(len(words), len(cost))):
            left = words[index] if index < len(words) else ""
            right = cost[index] if index < len(cost) else ""
            yield f"{left:{WORDS_WIDTH}} {figures if not index else '':21}  {right}".rstrip()


def _cost(fit: Fit, single: Single) -> str:
    host = single.answer.host_bytes - fit.as_it_is.host_bytes
    return single.cost + (f"; {format_bytes(host)} of host memory" if host >= 1 << 28 else "")


def _blocked(fit: Fit) -> Iterator[str]:
    blocked = [single for single in fit.singles if single.blocked]
    if blocked or fit.skipped:
        yield "not used"
    for single in blocked:
        yield f"  {single.words}: {single.blocked}"
    if fit.skipped:
        yield f"  not estimated, as a gentler set fits (--all does): {', '.join(fit.skipped)}"


def _chosen(fit: Fit) -> Iterator[str]:
    if fit.chosen is None:
        if fit.singles and not fit.as_it_is.runs:
            yield "no set of these changes makes it fit" + _permission(fit)
        return
    words = "; ".join(single.words for single in fit.chosen.singles)
    answer = fit.chosen.answer
    yield f"the gentlest set that fits: {words}"
    yield f"  needs {format_bytes(answer.need_bytes)}, {format_bytes(answer.left_bytes)} left ({answer.verdict})"


def _permission(fit: Fit) -> str:
    alone = [single for single in fit.singles if single.blocked and "--allow" in single.blocked and single.answer.runs]
    return f"; by itself one would that needs leave: {alone[0].words} ({alone[0].blocked})" if alone else ""


def _largest(fit: Fit) -> Iterator[str]:
    if fit.largest:
        yield "the largest that fits" + (" then" if fit.chosen else "")
    for each in fit.largest:
        yield f"  {each.key} {_size(each)}"


def _size(each: Largest) -> str:
    if each.is_limit:
        return f"{each.value} or more"
    beyond = each.next_refusal or f"needs {format_bytes(each.next_need_bytes)}"
    if not each.value:
        return f"none; 1 {beyond}"
    return f"{each.value} ({format_bytes(each.need_bytes)}); {each.value + 1} {beyond}"
