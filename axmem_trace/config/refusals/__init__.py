"""Configurations that axolotl refuses, and why. Each rule is one of axolotl's own. Source: axolotl
`utils/schemas/{validation,config,peft}.py` and `integrations/*/args.py`. A rule that only some releases have names them.

Every broken rule is reported, not only the first. Most of them don't change memory, so the figures are shown too.
A configuration without data is assumed to be incomplete on purpose: it gets only a warning.
"""

from __future__ import annotations

import re

from axmem_trace.config.document.draft import Draft, shortened
from axmem_trace.config.refusals.adapters import ADAPTER_RULES, QUANTISATION_RULES
from axmem_trace.config.refusals.base_model import refuse_on_base
from axmem_trace.config.refusals.datasets import DATA_RULES, refuse_datasets
from axmem_trace.config.refusals.fsdp2 import FSDP2_RULES
from axmem_trace.config.refusals.hardware import refuse_on_gpu
from axmem_trace.config.refusals.optimizers import OPTIMIZER_RULES
from axmem_trace.config.refusals.parallel_plugins import PARALLEL_PLUGIN_RULES
from axmem_trace.config.refusals.parallelism import PARALLELISM_RULES
from axmem_trace.config.refusals.plugins import refuse_plugins
from axmem_trace.config.refusals.rule import Rule
from axmem_trace.config.refusals.since_0_20 import RULES_OF_0_20
from axmem_trace.config.refusals.since_0_21 import RULES_OF_0_21
from axmem_trace.config.refusals.step import CHECKPOINTING_RULES, LOSS_RULES, refuse_cross_entropies
from axmem_trace.config.refusals.training import EVALUATION_RULES, TRAINING_RULES

__all__ = ["RULES", "refuse_contradictions", "refuse_on_base", "refuse_on_gpu"]

RULES = (
    *QUANTISATION_RULES,
    *ADAPTER_RULES,
    *OPTIMIZER_RULES,
    *TRAINING_RULES,
    *EVALUATION_RULES,
    *CHECKPOINTING_RULES,
    *LOSS_RULES,
    *PARALLELISM_RULES,
    *DATA_RULES,
    *FSDP2_RULES,
    *RULES_OF_0_20,
    *RULES_OF_0_21,
    *PARALLEL_PLUGIN_RULES,
)
"""In the order in which they are checked."""


def refuse_contradictions(draft: Draft) -> None:
    """Reports each broken rule. If the rule's figures are for a changed configuration, the draft is changed in this way."""
    broken = [rule for rule in RULES if rule.holds_in(draft.release.version) and rule.broken(draft)]
    for rule in broken:
        _report(draft, rule)
    for rule in broken:
        draft.values.update(rule.figures_with)
    refuse_cross_entropies(draft)
    refuse_datasets(draft)
    refuse_plugins(draft)
    _refuse_regexes(draft)


def _report(draft: Draft, rule: Rule) -> None:
    problem = f"axolotl refuses this: {rule.problem}"
    if rule.decides_memory:
        draft.fail(draft.error(problem, rule.key, remedy=rule.remedy))
        return
    if rule.figures_with:
        ((key, value),) = rule.figures_with.items()
        problem += f" (the figures are {f'with `{key}: {shortened(value)}`' if value else f'without {key}'})"
    draft.refuse(problem, rule.key, remedy=rule.remedy)


def _refuse_regexes(draft: Draft) -> None:
    """`check_lora_target_modules_regex`. axolotl compiles `unfrozen_parameters` later, when the model exists."""
    for key in ("lora_target_modules", "unfrozen_parameters"):
        patterns = draft.get(key)
        for index, pattern in enumerate(patterns if isinstance(patterns, list) else []):
            try:
                re.compile(re.sub(r"\[\d*:\d*\]$", "", pattern))
            except re.error as error:
                remedy = "write a Python regular expression or a plain module name"
                name = f"{key}.{index}" if draft.line(f"{key}.{index}") else key
                draft.fail(draft.error(f"{pattern!r} is no regular expression: {error}", name, remedy=remedy))
