"""`fit`: finds changes that make a run fit its card."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.advice.fitting.candidates import CANDIDATES
from axmem_trace.advice.fitting.changes import describe_change, join
from axmem_trace.advice.fitting.cures import cure_refusals
from axmem_trace.advice.fitting.encode import fit_to_dict
from axmem_trace.advice.fitting.largest import MAX_SEQUENCE_LEN, Largest, Wanted, find_largest
from axmem_trace.advice.fitting.questions import Answer, Estimate, Questions
from axmem_trace.advice.fitting.sets import ChangeSet, find_gentlest
from axmem_trace.advice.fitting.singles import Rules, Say, Single, propose_steps, try_singles
from axmem_trace.advice.largest_batch import MAX_MICRO_BATCH
from axmem_trace.config.document.edit import cut_keys, edit_yaml
from axmem_trace.config.document.overrides import Settings
from axmem_trace.errors import ConfigError
from axmem_trace.report import Report
from axmem_trace.units import format_bytes

LEAST_CANDIDATES = 10
"""At least this number of candidates is estimated (if as many apply to a run), also if a gentle one fits."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The result of `fit`: the changes that make a run fit its card.

    Attributes:
        report: the report of the unchanged configuration.
        as_it_is: the figures of the unchanged configuration, with the margin and `cure`.
        margin_bytes: memory of the card that must stay free.
        singles: each change by itself.
        chosen: the gentlest set that fits; None if the run fits as it is, or no set fits.
        cure: a change without which the run is impossible. All figures except those of `report` include it.
        skipped: candidates that were not estimated, because a gentler set fits.
        largest: the largest micro batch and sequence of the run with the set; without a set, of the unchanged run.
        patch: the changed keys as YAML, with comments; empty if nothing changes.
        changed_file: the whole configuration with the patch.
        num_estimates: the number of estimated runs.
        seconds: wall time.
    """

    report: Report
    as_it_is: Answer
    margin_bytes: int
    singles: tuple[Single, ...]
    chosen: ChangeSet | None
    cure: Change | None
    skipped: tuple[str, ...]
    largest: tuple[Largest, ...]
    patch: str
    changed_file: str
    num_estimates: int
    seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether the run fits, unchanged or with the patch. None: it depends on something that is not modelled."""
        if self.as_it_is.runs or self.chosen is not None:
            return True
        return None if self.as_it_is.why else False

    def to_dict(self) -> dict[str, Any]:
        """The result in the form of its JSON, as plain dicts, lists, strings and numbers."""
        return fit_to_dict(self)

    def __str__(self) -> str:
        from axmem_trace.render.fit import render_fit

        return render_fit(self)


def fit(
    config: str | Path | Mapping[str, Any],
    *,
    gpu: str,
    allow: Iterable[str] = (),
    keep: Iterable[str] = (),
    margin: str = "",
    everything: bool = False,
    overrides: Settings = (),
    progress: Say | None = None,
    estimate: Estimate | None = None,
    **options: Any,
) -> Fit:
    """Finds changes that make a run fit its card: single changes, the gentlest set that fits, and the largest sizes
    that fit.

    Every figure is an estimate of the changed configuration.

    Args:
        config: a YAML file (`-`: standard input), or its content as a mapping.
        gpu: the card, by name or memory.
        allow: changes that are used although the model learns something different: `rank`, `sequence_len`,
            `quantised_base`, `effective_batch`. Or a key that the user set to false.
        keep: keys that must not be changed.
        margin: memory of the card that must stay free, such as `1GiB` or `5%`.
        everything: whether slow candidates are estimated too, even if a gentler set fits.
        overrides: as for `estimate`.
        progress: called with a description of the change that is estimated next.
        estimate: the function that makes a report; by default `axmem_trace.estimate`.
        options: the other arguments of `estimate`.

    Raises:
        ConfigError: there is no card, the configuration can't be estimated, or an argument can't be read.
    """
    started = time.perf_counter()
    if not gpu:
        raise ConfigError("fit needs a card", remedy='name one: --gpu "RTX 4090"')
    say = progress or (lambda words: None)
    say("the configuration as it is")
    questions = Questions(
        config,
        overrides=overrides,
        options={"gpu": gpu, "margin": margin, **options},
        estimate=estimate or _estimate,
    )
    rules = Rules(allow=frozenset(allow), keep=frozenset(keep))
    cure = cure_refusals(questions, rules) if questions.report.refusals else None
    can_run = cure is not None or not questions.report.refusals
    singles: list[Single] = []
    skipped: list[str] = []
    chosen = None
    if can_run and not questions.as_it_is.is_safe:
        singles, chosen, skipped = _look_for_changes(questions, rules, say, everything=everything)
    change = join(cure or Change(), chosen.change if chosen else Change())
    fits = chosen is not None or questions.as_it_is.runs
    largest = _find_largest(questions, chosen.change if chosen else Change(), say) if can_run else []
    questions.base = Change()
    patch, changed_file = _write_patch(questions, change, chosen.answer if chosen else questions.as_it_is, fits=fits)
    return Fit(
        report=questions.report,
        as_it_is=questions.as_it_is,
        margin_bytes=questions.report.gpu.margin_bytes,
        singles=tuple(singles),
        chosen=chosen,
        cure=cure,
        skipped=tuple(skipped),
        largest=tuple(largest),
        patch=patch,
        changed_file=changed_file,
        num_estimates=questions.num_estimates,
        seconds=time.perf_counter() - started,
    )


def _estimate(config: Any, **arguments: Any) -> Report:
    from axmem_trace.estimation import estimate

    return estimate(config, **arguments)


_Found = tuple[list[Single], "ChangeSet | None", list[str]]


def _look_for_changes(questions: Questions, rules: Rules, say: Say, *, everything: bool) -> _Found:
    """The single changes, the gentlest set, and the names of candidates that were left out because this set is gentler.

    The set is estimated again with all checks of repeated layers; if that changes its figures, so is everything.
    """
    from axmem_trace.training.checked_folds import checks_left_out

    with checks_left_out():
        found = _look_once(questions, rules, say, everything=everything)
    chosen = found[1]
    if chosen is None or questions.ask_again(chosen.change) == chosen.answer:
        return found
    questions.forget()
    return _look_once(questions, rules, say, everything=everything)


def _look_once(questions: Questions, rules: Rules, say: Say, *, everything: bool) -> _Found:
    later = [] if everything else _leave_for_later(questions, rules)
    singles = try_singles(questions, [each for each in CANDIDATES if each not in later], rules, say)
    chosen = find_gentlest(questions, singles, rules, say)
    grade = chosen.grade if chosen is not None and chosen.answer.is_safe else Grade.LEARNING
    needed = [each for each in later if each.grade < grade or chosen is None]
    if needed:
        singles += try_singles(questions, needed, rules, say)
        chosen = find_gentlest(questions, singles, rules, say)
    if chosen is not None and questions.as_it_is.runs and not chosen.answer.is_safe:
        chosen = None
    situation = questions.situation()
    skipped = [each.name for each in later if each not in needed and any(True for _ in each.propose(situation))]
    return singles, chosen, skipped


def _leave_for_later(questions: Questions, rules: Rules) -> list[Candidate]:
    """The candidates after the first `LEAST_CANDIDATES` that are slow, or that change what the model learns without
    permission."""
    situation = questions.situation()
    later = [each for each in CANDIDATES if each.slow or _only_asks(each, rules)]
    missing = LEAST_CANDIDATES - sum(
        _can_be_estimated(each, situation, questions, rules) for each in CANDIDATES if each not in later
    )
    for each in sorted(later, key=lambda candidate: candidate.slow):
        if missing > 0 and _can_be_estimated(each, situation, questions, rules):
            later.remove(each)
            missing -= 1
    return later


def _can_be_estimated(candidate: Candidate, situation: Situation, questions: Questions, rules: Rules) -> bool:
    changes = propose_steps(candidate, situation, questions, rules)
    return any(questions.is_permitted(change) for change in changes)


def _only_asks(candidate: Candidate, rules: Rules) -> bool:
    """True if a candidate changes what the model learns and the user has not permitted it."""
    return bool(candidate.allow) and candidate.steps and candidate.allow not in rules.allow


def _find_largest(questions: Questions, change: Change, say: Say) -> Sequence[Largest]:
    values = questions.situation(change).values
    limits = (("micro_batch_size", MAX_MICRO_BATCH), ("sequence_len", MAX_SEQUENCE_LEN))
    wanted = [
        Wanted(key=key, current=value, most=most)
        for key, most in limits
        if isinstance(value := values.get(key), int) and value > 0
    ]
    return find_largest(questions, change, wanted, say)


def _write_patch(questions: Questions, change: Change, answer: Answer, *, fits: bool) -> tuple[str, str]:
    """The changed keys, and the whole changed file. Both include the values of `--set`."""
    values = questions.situation(change).values
    touched = dict.fromkeys(key.partition(".")[0] for key in (*questions.overrides, *change.settings))
    text = questions.document.text or edit_yaml("", questions.document.values)
    changed = edit_yaml(text, {key: values[key] for key in touched})
    if not fits or change == Change():
        return "", changed
    return _head(questions, change, answer) + cut_keys(changed, touched), changed


def _head(questions: Questions, change: Change, answer: Answer) -> str:
    gpu, need = questions.report.gpu, format_bytes(answer.need_bytes)
    before = format_bytes(questions.report.peak.device_bytes)
    lines = [f"axmem_trace fit: needs {need} of {format_bytes(gpu.memory_bytes)} on {gpu.name}, before {before}"]
    lines.append(describe_change(change, questions.situation().values))
    if change.num_gpus:
        lines.append(f"on {change.num_gpus} GPUs: --gpus {change.num_gpus}")
    lines += [f"in the environment: {name}={value}" for name, value in change.environment.items()]
    return "".join(f"# {line}\n" for line in lines)
