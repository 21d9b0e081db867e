"""A change without which a run is impossible, for example because the card does not have the attention kernel."""

from __future__ import annotations

from axmem_trace.advice.fitting.candidate import Change
from axmem_trace.advice.fitting.candidates import CANDIDATES
from axmem_trace.advice.fitting.questions import Questions
from axmem_trace.advice.fitting.singles import Rules, block


def cure_refusals(questions: Questions, rules: Rules) -> Change | None:
    """The gentlest permitted change of a refused key after which nothing is refused; None if there is none. All later
    questions start from this change."""
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
