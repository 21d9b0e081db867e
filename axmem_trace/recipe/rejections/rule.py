"""What a rule of refusal is, and the questions that several rules ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from axmem_trace.recipe.draft import Draft


@dataclass(frozen=True, slots=True)
class Rule:
    """`key` is to blame when `broken` holds."""

    key: str
    broken: Callable[[Draft], object]
    problem: str
    remedy: str


def given(draft: Draft, key: str) -> object:
    """The value as written, dropped plugin keys included: axolotl's `before` validators see the raw mapping."""
    return draft.values.get(key, draft.dropped.get(key))


def reentrant(draft: Draft) -> object:
    return draft.sub("gradient_checkpointing_kwargs").get("use_reentrant")


def is_lora(draft: Draft) -> bool:
    return draft.get("adapter") in ("lora", "qlora")


def bits(draft: Draft) -> bool:
    return bool(draft.get("load_in_8bit") or draft.get("load_in_4bit"))


def lora_kernels(draft: Draft) -> bool:
    return any(draft.get(key) for key in ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"))


def fsdp(draft: Draft) -> bool:
    return bool(draft.get("fsdp") or draft.get("fsdp_config"))


def fsdp2(draft: Draft) -> bool:
    return str(draft.get("fsdp_version")) == "2"
