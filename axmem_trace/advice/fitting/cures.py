"""A change without which a run can't run at all: a card that lacks the attention kernel, for example."""

from __future__ import annotations

from axmem_trace.advice.fitting.candidate import Change
from axmem_trace.advice.fitting.candidates import CANDIDATES
from axmem_trace.advice.fitting.questions import Questions
from axmem_trace.advice.fitting.singles import Rules, block


def cure_refusals(questions: Questions, rules: Rules) -> Change | None:
    """The gentlest permitted change of a refused key with which nothing is refused, or None; the questions then start from
    it."""
    situation = questions.situation()
    keys = {refusal.key for refusal in questions.report.refusals}
    for candidate in sorted(CANDIDATES, key=lambda each: each.grade):
        for change in candidate.propose(situation):
            if (
                keys & change.settings.keys()
                and not block(candidate, change, situation, rules)
                and questions.is_permitted(change)
            ):
                answer = questions.ask(change)
                if not answer.refusal and answer.need_bytes:
                    questions.start_from(change)
                    return change
    return None
