"""What axolotl 0.19 refuses, with its reason: rules that are really in axolotl. Source: axolotl
`utils/schemas/{validation,config,peft}.py` and `integrations/*/args.py`, 0.19.0.

Keys that a run needs but memory does not (`datasets`, `learning_rate`) are not asked for.
"""

from __future__ import annotations

import re

from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.adapters import ADAPTER_RULES, QUANTISATION_RULES
from axmem_trace.config.refusals.base_model import reject_on_base
from axmem_trace.config.refusals.hardware import reject_on_gpu
from axmem_trace.config.refusals.optimizers import OPTIMIZER_RULES
from axmem_trace.config.refusals.parallelism import PARALLELISM_RULES
from axmem_trace.config.refusals.step import CHECKPOINTING_RULES, LOSS_RULES, reject_cross_entropies
from axmem_trace.config.refusals.training import EVALUATION_RULES, TRAINING_RULES

__all__ = ["RULES", "reject", "reject_on_base", "reject_on_gpu"]

RULES = (
    *QUANTISATION_RULES,
    *ADAPTER_RULES,
    *OPTIMIZER_RULES,
    *TRAINING_RULES,
    *EVALUATION_RULES,
    *CHECKPOINTING_RULES,
    *LOSS_RULES,
    *PARALLELISM_RULES,
)
"""In the order in which they are tried."""


def reject(draft: Draft) -> None:
    """Raises the first broken rule as a `ConfigError`."""
    for rule in RULES:
        if rule.broken(draft):
            raise draft.error("axolotl refuses this: " + rule.problem, rule.key, remedy=rule.remedy)
    reject_cross_entropies(draft)
    _reject_regexes(draft)


def _reject_regexes(draft: Draft) -> None:
    """`check_lora_target_modules_regex`; `unfrozen_parameters` are compiled when the model is there."""
    for key in ("lora_target_modules", "unfrozen_parameters"):
        patterns = draft.get(key)
        for pattern in patterns if isinstance(patterns, list) else []:
            try:
                re.compile(re.sub(r"\[\d*:\d*\]$", "", pattern))
            except re.error as error:
                remedy = "write a Python regular expression or a plain module name"
                raise draft.error(f"{pattern!r} is no regular expression: {error}", key, remedy=remedy) from error
