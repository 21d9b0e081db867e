"""Optimizers. Source: axolotl `utils/schemas/validation.py` `check_polora`, `check_qgalore`,
`check_muon_deepspeed_fsdp`, `check_flashoptim_deepspeed_fsdp`, `check_tensor_parallel_optimizer`."""

from __future__ import annotations

from axmem_trace.config.derive.fsdp import requests_fsdp
from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.rule import Rule, fsdp2, is_lora

_POLORA_UNTRAINED = tuple(
    """
    lora_modules_to_save unfrozen_parameters peft_use_dora peft_trainable_token_indices lisa_step_interval
    reward_model process_reward_model
    """.split()
)
_POLORA_IGNORED = ("loraplus_lr_ratio", "lr_groups", "embedding_lr", "embedding_lr_scale")
_FSDP2_ONLY = ("muon", "muon_8bit", "polora", "q_galore_adamw8bit")


def _is(draft: Draft, name: str) -> bool:
    return bool(draft.get("optimizer") == name)


def _runs_with_fsdp2_only(draft: Draft) -> bool:
    name = str(draft.get("optimizer"))
    return name in _FSDP2_ONLY or name.startswith("flash_")


def _needs_fsdp2(draft: Draft) -> bool:
    return _runs_with_fsdp2_only(draft) and requests_fsdp(draft) and not fsdp2(draft)


def _excludes_deepspeed(draft: Draft) -> bool:
    return _runs_with_fsdp2_only(draft) and bool(draft.get("deepspeed"))


OPTIMIZER_RULES = (
    Rule(
        "optimizer",
        lambda d: _is(d, "q_galore_adamw8bit") and d.get("adapter"),
        "q_galore_adamw8bit trains full-precision parameters and is incompatible with an adapter",
        "remove the adapter or pick another optimizer",
        decides_memory=True,
    ),
    Rule(
        "optimizer",
        lambda d: _is(d, "polora") and not is_lora(d),
        "polora only updates LoRA factors and requires adapter: lora or qlora",
        "set the adapter or pick another optimizer",
        decides_memory=True,
    ),
    Rule(
        "optimizer",
        lambda d: _is(d, "polora") and any(d.values.get(key) for key in _POLORA_UNTRAINED),
        f"polora has no fallback optimizer: parameters that {', '.join(_POLORA_UNTRAINED)} add would never be trained",
        "remove them or pick another optimizer",
    ),
    Rule(
        "optimizer",
        lambda d: _is(d, "polora") and any(d.values.get(key) for key in _POLORA_IGNORED),
        f"polora sets its own step size, so {', '.join(_POLORA_IGNORED)} would be ignored",
        "remove them or pick another optimizer",
    ),
    Rule(
        "optimizer",
        _excludes_deepspeed,
        "this optimizer is incompatible with DeepSpeed",
        "remove deepspeed or pick another optimizer",
    ),
    Rule(
        "optimizer",
        _needs_fsdp2,
        "this optimizer is only compatible with FSDP2",
        "set `fsdp_version: 2`",
        until="0.19.0",
    ),
    Rule(
        "optimizer",
        lambda d: (
            (d.get("tensor_parallel_size") or 1) > 1
            and d.get("optimizer") in ("paged_adamw_8bit", "adamw_8bit", "adamw_bnb_8bit", "polora")
        ),
        "tensor_parallel_size is not supported with this optimizer",
        "pick another optimizer",
    ),
)
