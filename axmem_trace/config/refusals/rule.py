"""`Rule`: one condition under which axolotl refuses a configuration; and conditions that several rules use."""

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
    """One check. If `broken` returns true, `key` is the cause. `since` and `until` are the first and the last release that
    refuse it."""

    key: str
    broken: Callable[[Draft], object]
    problem: str
    remedy: str
    figures_with: Mapping[str, Any] = field(default_factory=dict)
    """Keys and values that resolve the contradiction; the figures are computed with them. Empty: the contradiction does not
    change the figures."""
    decides_memory: bool = False
    """The run's memory is unknown until the contradiction is resolved: there are no figures."""
    since: str = ""
    until: str = ""

    def holds_in(self, version: str) -> bool:
        """Whether this release of axolotl has the rule."""
        return _is_between(version, self.since, self.until)


@functools.cache
def _is_between(version: str, since: str, until: str) -> bool:
    """Cached, because each configuration checks every rule, and parsing a version is slow."""
    asked = Version(version)
    return not (since and asked < Version(since)) and not (until and asked > Version(until))


def given(draft: Draft, key: str) -> object:
    """The value as written, dropped plugin keys included: axolotl's `before` validators see the raw mapping."""
    return draft.values.get(key, draft.dropped.get(key))


def reentrant(draft: Draft) -> object:
    """`use_reentrant` as given."""
    return draft.sub("gradient_checkpointing_kwargs").get("use_reentrant")


def is_selective(draft: Draft) -> bool:
    """True if selective checkpointing is requested: by `true` or by a block, even an empty one."""
    return draft.get("selective_checkpointing") not in (None, False)


def is_lora(draft: Draft) -> bool:
    """True for a LoRA adapter, with a quantised base or not."""
    return draft.get("adapter") in ("lora", "qlora")


def bits(draft: Draft) -> bool:
    """True if bitsandbytes is requested."""
    return bool(draft.get("load_in_8bit") or draft.get("load_in_4bit"))


def lora_kernels(draft: Draft) -> bool:
    """True if one of the fused LoRA kernels is requested."""
    return any(draft.get(key) for key in VALIDATED_LORA_KERNEL_KEYS)


def lora_kernel_is_on(draft: Draft, key: str) -> bool:
    """True if the kernel is requested, or switched on by axolotl itself (0.20.0 `validation.py` `_lora_kernel_enabled`)."""
    if draft.has(key):
        return bool(draft.get(key)) and bool(draft.get("adapter"))
    return switches_lora_kernels_on(draft)


def switches_lora_kernels_on(draft: Draft) -> bool:
    """`lora_kernels_auto_enable`, without the check of the model type, which follows later (`derive_kernels`)."""
    return not (
        draft.get("rl")
        or given(draft, "nvfp4_merge_aware")
        or not is_lora(draft)
        or any(draft.has(key) for key in LORA_KERNEL_KEYS.values())
        or (draft.get("adapter") == "lora" and draft.get("load_in_8bit"))
        or draft.get("trust_remote_code")
    )


def fsdp2(draft: Draft) -> bool:
    """True for FSDP2. axolotl's validators compare the version as text."""
    return str(draft.get("fsdp_version")) == "2"
