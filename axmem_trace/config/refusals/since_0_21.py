"""What axolotl refuses from 0.21.0 on. Source: axolotl 0.21.0 `utils/schemas/{validation,config}.py`,
`utils/config/__init__.py`, `integrations/kernels/args.py`."""

from __future__ import annotations

from typing import Any

from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.parallel_plugins import context_parallel_size
from axmem_trace.config.refusals.rule import Rule

SINCE = "0.21.0"


def _colocated(draft: Draft) -> bool:
    trl = draft.sub("trl")
    return bool(trl.get("use_vllm") and trl.get("vllm_mode") == "colocate")


def _rolls_out_asynchronously(draft: Draft) -> bool:
    trl = draft.sub("trl")
    return bool(trl.get("async_prefetch") or trl.get("use_data_producer"))


def _balances_what_cannot_be(draft: Draft) -> bool:
    packed = draft.get("sample_packing")
    stream = draft.get("streaming") or draft.get("pretraining_dataset") or draft.get("group_by_length")
    fixed = any(
        draft.get(key)
        for key in (
            "sample_packing_sequentially",
            "curriculum_sampling",
            "diffusion_lm",
            "rl",
            "reward_model",
            "process_reward_model",
        )
    )
    return bool(draft.get("balance_labels") and ((not packed and stream) or fixed))


def _window(draft: Draft) -> Any:
    return draft.get("label_balance_window_optim_steps")


TRAINING_RULES = (
    Rule(
        "torch_compile_regional",
        lambda d: d.get("torch_compile") and d.get("torch_compile_regional") and d.get("gradient_checkpointing"),
        "torch_compile_regional cannot be combined with gradient_checkpointing",
        "compile the whole model: remove torch_compile_regional",
        since=SINCE,
    ),
    Rule(
        "balance_labels",
        _balances_what_cannot_be,
        "balance_labels needs packed samples, or batches of a fixed number of samples in any order",
        "remove balance_labels, or the key that fixes the order of the samples",
        since=SINCE,
    ),
    Rule(
        "balance_labels",
        lambda d: d.get("balance_labels") and d.sub("accelerator_config").get("split_batches"),
        "balance_labels requires accelerator_config.split_batches: false",
        "remove split_batches",
        since=SINCE,
    ),
    Rule(
        "label_balance_window_optim_steps",
        lambda d: isinstance(d.values.get("label_balance_window_optim_steps"), (int, float)) and _window(d) < 1,
        "label_balance_window_optim_steps must be at least 1",
        "raise it",
        since=SINCE,
    ),
    Rule(
        "label_balance_window_optim_steps",
        lambda d: isinstance(d.raw.get("label_balance_window_optim_steps"), float),
        "label_balance_window_optim_steps must be a whole number",
        "write it without a decimal point",
        since=SINCE,
    ),
    Rule(
        "label_balance_window_optim_steps",
        lambda d: (_window(d) or 1) > 1 and not d.get("balance_labels"),
        "label_balance_window_optim_steps requires balance_labels",
        "set `balance_labels: true`",
        since=SINCE,
    ),
    Rule(
        "label_balance_window_optim_steps",
        lambda d: (_window(d) or 1) > 1 and (d.get("streaming") or d.get("pretraining_dataset")),
        "label_balance_window_optim_steps cannot be used with streamed data",
        "remove it",
        since=SINCE,
    ),
    Rule(
        "diffusion_lm",
        lambda d: d.sub("diffusion_lm").get("from_causal_lm") and "diffusion" not in d.plugins,
        "diffusion_lm.from_causal_lm requires the diffusion plugin",
        "add `axolotl.integrations.diffusion.DiffusionPlugin` to `plugins:`",
        since=SINCE,
    ),
    Rule(
        "use_sonicmoe",
        lambda d: d.get("use_sonicmoe") and d.get("quantize_moe_experts"),
        "use_sonicmoe does not support quantised experts",
        "set `use_scattermoe: true` instead",
        since=SINCE,
    ),
    Rule(
        "nvfp4_merge_aware",
        lambda d: "kernels" in d.plugins and d.get("nvfp4_merge_aware") and d.get("use_scattermoe"),
        "nvfp4_merge_aware requires use_sonicmoe: true",
        "set it, or remove nvfp4_merge_aware",
        since=SINCE,
    ),
    Rule(
        "experts_implementation",
        lambda d: "kernels" in d.plugins and d.get("experts_implementation") == "deepgemm",
        "experts_implementation: deepgemm has no backward",
        "use grouped_mm",
        since="0.20.0",
    ),
)

RL_RULES = (
    Rule(
        "trl",
        lambda d: _colocated(d) and context_parallel_size(d) > 1,
        "vllm_mode: colocate cannot be used with context parallelism",
        "use `vllm_mode: server`",
        since=SINCE,
    ),
    Rule(
        "trl",
        lambda d: _colocated(d) and d.sub("trl").get("vllm_lora_sync"),
        "vllm_lora_sync requires vllm_mode: server",
        "remove it",
        since=SINCE,
    ),
    Rule(
        "trl",
        lambda d: _colocated(d) and d.get("adapter") and _rolls_out_asynchronously(d),
        "vllm_mode: colocate with an adapter cannot be used with asynchronous rollouts",
        "use `vllm_mode: server`",
        since=SINCE,
    ),
    Rule(
        "dpo_ld_alpha",
        lambda d: isinstance(d.get("dpo_ld_alpha"), (int, float)) and not 0 <= d.get("dpo_ld_alpha") <= 1,
        "dpo_ld_alpha must be between 0 and 1",
        "correct it",
        since=SINCE,
    ),
)

RULES_OF_0_21 = (*TRAINING_RULES, *RL_RULES)
