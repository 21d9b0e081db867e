"""Estimates changed configurations. All estimates of `fit` are made here; the same run is estimated only once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from axmem_trace.advice.fitting.candidate import Change, Situation
from axmem_trace.advice.fitting.changes import join
from axmem_trace.advice.processes import call_in_processes, num_workers
from axmem_trace.config import read_recipe
from axmem_trace.config.axolotl import choose_release
from axmem_trace.config.document.key_table import plugins_of
from axmem_trace.config.document.overrides import Settings, apply_overrides, parse_settings
from axmem_trace.config.document.yaml_reader import Document, read_document
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report import Report
from axmem_trace.report.verdict import Verdict
from axmem_trace.tracing.patching import replaced_items

Estimate = Callable[..., Report]
"""`axmem_trace.estimate`, or a function with the same arguments and result."""
UNCHANGED = Change()
MAX_WORKERS = 4
"""The number of processes that estimate at the same time; each needs about 200 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The result of one estimate, or why there is none.

    Attributes:
        need_bytes: needed bytes of the card, with everything included; 0 without figures.
        live_bytes: the part of `need_bytes` that a smaller card would need too: tensors, CUDA context, NCCL's buffers.
        left_bytes: free bytes of the card; negative if the run does not fit.
        fits, verdict, why: as in a report.
        phase, step, holder: the moment and the purpose of the peak.
        host_bytes: host memory, in addition to the card.
        num_gpus: number of cards of the run.
        refusal: why the run is impossible.
    """

    need_bytes: int = 0
    live_bytes: int = 0
    left_bytes: int = 0
    fits: bool | None = None
    verdict: Verdict = ""
    why: str = ""
    phase: str = ""
    step: int = 0
    holder: str = ""
    host_bytes: int = 0
    num_gpus: int = 1
    refusal: str = ""

    @property
    def is_safe(self) -> bool:
        """Whether the run is possible, and fits with more free memory than the error of our figures."""
        return self.runs and self.verdict in ("fits", "fits with room")

    @property
    def runs(self) -> bool:
        """Whether the run is possible and fits, also if the verdict is `tight`."""
        return self.fits is True and not self.refusal


class Questions:
    """The runs of one configuration, unchanged and with changes.

    Args:
        config: as for `estimate`.
        overrides: `--set`.
        options: the other arguments of `estimate`, which are the same for each run.
        estimate: the function that makes a report.
    """

    def __init__(
        self,
        config: Any,
        *,
        overrides: Settings,
        options: Mapping[str, Any],
        estimate: Estimate,
    ) -> None:
        self.config = config
        self.document: Document = read_document(config)
        self.overrides = dict(parse_settings(overrides, "--set"))
        self._options = dict(options)
        self._estimate = estimate
        self._answers: list[tuple[Recipe, Answer]] = []
        self.base = Change()
        self.num_estimates = 1
        self.report, self.as_it_is = self._ask_as_it_is()

    def situation(self, change: Change = UNCHANGED) -> Situation:
        """The configuration after a change.

        Raises:
            ConfigError: the configuration can't be read.
        """
        whole = join(self.base, change)
        values, _ = apply_overrides(self.document.values, {**self.overrides, **whole.settings})
        release = choose_release(self._options.get("axolotl", "")).release
        return Situation(
            values=values,
            recipe=self._read(change),
            plugin_names=plugins_of(release.version),
            num_gpus_is_open=not self._options.get("num_gpus") and not whole.num_gpus and not self._counted(),
        )

    def prefetch(self, changes: Sequence[Change]) -> None:
        """Estimates several changed runs at the same time, in separate processes, so that `ask` has the answers.

        Does nothing if forking is not safe or not useful: not on Linux, with other threads, or with one processor.
        """
        new: dict[int, tuple[Recipe, Change]] = {}
        for change in changes:
            run = self._run_to_ask(change)
            if run is not None and all(run != known for known, _ in [*self._answers, *new.values()]):
                new[len(new)] = (run, change)
        workers = min(MAX_WORKERS, num_workers(), len(new))
        if workers < 2:
            return
        answers = _ask_in_processes(self, [change for _, change in new.values()], workers)
        self.num_estimates += len(answers)
        self._answers += [(run, answer) for (run, _), answer in zip(new.values(), answers, strict=True)]

    def is_permitted(self, change: Change) -> bool:
        """True if axolotl accepts the changed configuration, as far as the configuration alone shows it."""
        return self._run_to_ask(change) is not None

    def _run_to_ask(self, change: Change) -> Recipe | None:
        """The recipe of the changed run, which is the key of its answer; None if it is not estimated, because the run
        is impossible."""
        try:
            recipe = self._read(change)
        except ConfigError:
            return None
        return None if recipe.refusals else _without_texts(recipe)

    def changes_nothing(self, change: Change) -> bool:
        """True if the run is the same as without the change."""
        try:
            return _without_texts(self._read(change)) == _without_texts(self._read(Change()))
        except ConfigError:
            return False

    def ask(self, change: Change) -> Answer:
        """The figures of the changed run. If axolotl refuses it because of the change, it is not estimated."""
        try:
            recipe = self._read(change)
        except ConfigError as error:
            return Answer(refusal=error.problem)
        if recipe.refusals:
            return Answer(refusal=recipe.refusals[0].text)
        run = _without_texts(recipe)
        for known, answer in self._answers:
            if known == run:
                return answer
        self.num_estimates += 1
        answer = self.ask_anew(change)
        self._answers.append((run, answer))
        return answer

    def ask_again(self, change: Change) -> Answer:
        """As `ask`, by a new estimate; later questions get this answer."""
        run = _without_texts(self._read(change))
        self._answers = [(known, answer) for known, answer in self._answers if known != run]
        return self.ask(change)

    def forget(self) -> None:
        """Drops all answers but that on the configuration as it is."""
        del self._answers[1:]

    def report_on(self, change: Change, *, moments: bool = False) -> Report:
        """The full report of a changed run, with `Report.moments` if they are requested.

        Raises:
            ConfigError: it can't be estimated.
        """
        with replaced_items(os.environ, join(self.base, change).environment):
            return self._estimate(self.config, **self._arguments(change), moments=moments)

    def start_from(self, change: Change) -> Answer:
        """Makes this change first in all later questions."""
        self.base = change
        self.as_it_is = self.ask(Change())
        return self.as_it_is

    def _ask_as_it_is(self) -> tuple[Report, Answer]:
        report = self.report_on(Change(), moments=True)
        answer = self._make_answer(report)
        self._answers.append((_without_texts(self._read(Change())), answer))
        return report, answer

    def ask_anew(self, change: Change) -> Answer:
        """A new estimate, even if the answer is known."""
        try:
            report = self.report_on(change)
        except ConfigError as error:
            return Answer(refusal=error.problem)
        return self._make_answer(report)

    def _make_answer(self, report: Report) -> Answer:
        left = report.headroom_bytes or 0
        return Answer(
            need_bytes=report.gpu.memory_bytes - left,
            live_bytes=report.peak.counted_bytes + report.peak.context_bytes + report.peak.nccl_bytes,
            left_bytes=left,
            fits=report.fits,
            verdict=report.verdict,
            why=report.why,
            phase=report.peak.phase,
            step=report.peak.step,
            holder=report.peak.holder,
            host_bytes=report.host.cpu.peak_bytes + report.host.managed.peak_bytes,
            num_gpus=report.gpu.count,
            refusal=report.refusals[0].reason if report.refusals else "",
        )

    def _read(self, change: Change) -> Recipe:
        arguments = self._arguments(change)
        with replaced_items(os.environ, join(self.base, change).environment):
            return read_recipe(self.config, **{name: arguments[name] for name in _READ if name in arguments})

    def _arguments(self, change: Change) -> dict[str, Any]:
        whole = join(self.base, change)
        counted = {"num_gpus": whole.num_gpus} if whole.num_gpus else {}
        overrides = {**self.overrides, **whole.settings}
        return {**self._options, **counted, "overrides": overrides, "alternatives": False}

    def _counted(self) -> bool:
        from axmem_trace.config.derive.hardware import read_count

        return bool(read_count(self._options.get("gpu", ""), 0)[0])


_READ = tuple("overrides assumptions gpu num_gpus num_nodes margin hub trust_remote_code strict axolotl".split())
"""Arguments of `estimate` that `read_recipe` has too."""


def _ask_in_processes(questions: Questions, changes: Sequence[Change], workers: int) -> list[Answer]:
    from axmem_trace.training.checked_folds import unpack

    found = call_in_processes(lambda number: _ask_and_pack(questions, changes[number]), len(changes), workers)
    for _, checks in found:
        unpack(checks)
    return [answer for answer, _ in found]


def _ask_and_pack(questions: Questions, change: Change) -> tuple[Answer, bytes]:
    """The answer, and the data of this process that make later answers fast."""
    from axmem_trace.training.checked_folds import kept, pack

    before = kept()
    answer = questions.ask_anew(change)
    return answer, pack([each for each in kept() if all(each is not known for known in before)])


def _without_texts(recipe: Recipe) -> Recipe:
    """The recipe without texts that can't change its figures or its verdict. Notes that can prevent a verdict are
    kept."""
    notes: Iterator[Note] = (note for note in recipe.notes if note.kind in ("not_modelled", "refused"))
    notes = (replace(note, line=0) for note in notes)
    return replace(recipe, name="", reasons={}, written={}, alternatives=(), notes=tuple(notes))
