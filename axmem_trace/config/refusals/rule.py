"""`Rule`: what axolotl refuses, and conditions that several rules use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.run import LORA_KERNEL_KEYS, VALIDATED_LORA_KERNEL_KEYS


@dataclass(frozen=True, slots=True)
class Rule:
    """If `broken` is true, `key` is the cause. `since` and `until`: the first and the last release that refuses it."""

    key: str
    broken: Callable[[Draft], object]
    problem: str
    remedy: str
    figures_with: Mapping[str, Any] = field(default_factory=dict)
    """Keys and values that resolve the contradiction: the figures are with them. Empty: it does not change the figures."""
    decides_memory: bool = False
    """What the run would hold is not known before the contradiction is resolved: there are no figures."""
    since: str = ""
    until: str = ""

    def holds_in(self, version: str) -> bool:
        """Whether this release of axolotl has the rule."""
        return _is_between(version, self.since, self.until)


@functools.cache
def _is_between(version: str, since: str, until: str) -> bool:
    """Each configuration asks this of every rule, and parsing a version is slow."""
    asked = Version(version)
    return not (since and asked < Version(since)) and not (until and asked > Version(until))


def given(draft: Draft, key: str) -> object:
    """The value as written, dropped plugin keys included: axolotl's `before` validators see the raw mapping."""
    return draft.values.get(key, draft.dropped.get(key))


def reentrant(draft: Draft) -> object:
    """`use_reentrant` as given."""
    return draft.sub("gradient_checkpointing_kwargs").get("use_reentrant")


def is_selective(draft: Draft) -> bool:
    """Selective checkpointing is requested: `true`, or a block, even an empty one."""
    return draft.get("selective_checkpointing") not in (None, False)


def is_lora(draft: Draft) -> bool:
    """A LoRA adapter, quantised or not."""
    return draft.get("adapter") in ("lora", "qlora")


def bits(draft: Draft) -> bool:
    """bitsandbytes is requested."""
    return bool(draft.get("load_in_8bit") or draft.get("load_in_4bit"))


def lora_kernels(draft: Draft) -> bool:
    """One of the fused LoRA kernels is requested."""
    return any(draft.get(key) for key in VALIDATED_LORA_KERNEL_KEYS)


def lora_kernel_is_on(draft: Draft, key: str) -> bool:
    """Requested, or switched on by axolotl itself (0.20.0 `validation.py` `_lora_kernel_enabled`)."""
    if draft.has(key):
        return bool(draft.get(key)) and bool(draft.get("adapter"))
    return switches_lora_kernels_on(draft)


def switches_lora_kernels_on(draft: Draft) -> bool:
    """`lora_kernels_auto_enable`, without the model's part: types that have none are found later."""
    return not (
        draft.get("rl")
        or given(draft, "nvfp4_merge_aware")
        or not is_lora(draft)
        or any(draft.has(key) for key in LORA_KERNEL_KEYS.values())
        or (draft.get("adapter") == "lora" and draft.get("load_in_8bit"))
        or draft.get("trust_remote_code")
    )


def fsdp2(draft: Draft) -> bool:
    """FSDP2: validators compare the version as text."""
    return str(draft.get("fsdp_version")) == "2"
