"""What axolotl refuses from 0.20.0 on. Source: axolotl 0.20.0 `utils/schemas/{validation,config,peft,training}.py`,
`integrations/{cut_cross_entropy,context_parallel}/args.py`, `monkeypatch/models/recurrent_support.py`."""

from __future__ import annotations

import fnmatch
from typing import Any

from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.rule import Rule, given, lora_kernel_is_on
from axmem_trace.recipe.run import VALIDATED_LORA_KERNEL_KEYS

SINCE = "0.20.0"
VALUE_INDEPENDENT_INIT = (None, True, False, "gaussian")
"""Initialisations of LoRA that read no base weight (`schemas/peft.py` `VALUE_INDEPENDENT_LORA_INIT`)."""
_FUSED_MODULES = {
    "lora_mlp_kernel": "gate_proj up_proj down_proj mlp mixer shared_experts shared_expert feedforward experts "
    "gate_projs up_projs down_projs",
    "lora_qkv_kernel": "q_proj k_proj v_proj in_proj_qkv in_proj_z in_proj_b in_proj_a self_attn linear_attn mixer",
    "lora_o_kernel": "o_proj out_proj self_attn linear_attn mixer",
    "flash_attn_fuse_mlp": "gate_proj up_proj down_proj mlp",
}
"""Modules whose forward a fused kernel replaces (`_SAC_FUSED_MODULE_COVERAGE`)."""
_CONTAINERS = "model language_model text_model decoder transformer backbone layers layer h blocks block".split()
_MATMULS = ("aten::mm", "aten::addmm", "aten::matmul", "aten::bmm")
_CUSTOM_LOSS_CONFLICTS = (
    "rl",
    "reward_model",
    "process_reward_model",
    "cut_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "chunked_cross_entropy",
)


def reads_the_base(draft: Draft) -> bool:
    """True if LoRA is initialised from the base weights."""
    loftq = draft.sub("peft").get("loftq_config")
    return draft.get("peft_init_lora_weights") not in VALUE_INDEPENDENT_INIT or bool(loftq)


def parallel(draft: Draft, *names: str) -> bool:
    """True if one of these sizes (`tensor`, `context`, `expert`) is above 1."""
    return any((draft.get(f"{name}_parallel_size") or 1) > 1 for name in names)


def _saved(draft: Draft, name: str) -> Any:
    return draft.sub("selective_checkpointing").get(name)


def _fused_matmul_saved(draft: Draft) -> bool:
    fused = any(lora_kernel_is_on(draft, key) for key in VALIDATED_LORA_KERNEL_KEYS)
    saved = [spec for spec in _saved(draft, "save") or [] if spec != "attention"]
    return fused and (
        bool(_saved(draft, "save_matmul_min_k")) or any(spec in name for spec in saved for name in _MATMULS)
    )


def _fused_module_saved(draft: Draft) -> bool:
    for key, modules in _FUSED_MODULES.items():
        on = lora_kernel_is_on(draft, key) if key.startswith("lora_") else bool(draft.get(key))
        for entry in _saved(draft, "save_modules") or [] if on else []:
            last = str(entry).rsplit(".", 1)[-1]
            if any(fnmatch.fnmatchcase(module, last) for module in modules.split()):
                return True
            if key.startswith("lora_") and _is_container(last):
                return True
    return False


def _is_container(name: str) -> bool:
    """True if the name is that of a decoder layer or of a module that contains them (`_sac_entry_is_layer_container`)."""
    if any(sign in name for sign in "*?["):
        return any(fnmatch.fnmatchcase(each, name) for each in (*_CONTAINERS, *map(str, range(100))))
    return name.isdigit() or name in _CONTAINERS


def _custom_loss(draft: Draft) -> str:
    return next((key for key in ("use_dft", "use_eaft") if given(draft, key)), "")


def _custom_loss_conflict(draft: Draft) -> bool:
    conflict = any(given(draft, key) for key in _CUSTOM_LOSS_CONFLICTS)
    return bool(_custom_loss(draft)) and (conflict or parallel(draft, "context"))


def _chunk(draft: Draft) -> Any:
    return draft.get("cut_cross_entropy_c_grad_chunk_size")


def _below(draft: Draft, key: str, least: float) -> bool:
    value = draft.get(key)
    return isinstance(value, (int, float)) and value < least


def _starts_at(key: str, least: int) -> Rule:
    return Rule(key, lambda d: _below(d, key, least), f"{key} must be at least {least}", "raise it", since=SINCE)


_LEAST = {
    "mixlora_num_experts": 1,
    "mixlora_top_k": 1,
    "mixlora_expert_lora_r": 1,
    "mixlora_expert_lora_alpha": 1,
    "mixlora_router_aux_loss_coef": 0,
    "mixlora_jitter_noise": 0,
    "mixlora_expert_lora_dropout": 0,
}

ADAPTER_RULES = (
    Rule(
        "lora_target_parameters",
        lambda d: d.get("lora_target_parameters") and reads_the_base(d),
        "peft_init_lora_weights must be the default or gaussian with lora_target_parameters",
        "remove peft_init_lora_weights",
        since=SINCE,
    ),
    Rule(
        "lora_fp32_gradients",
        lambda d: d.get("lora_fp32_gradients") and d.get("adapter") not in ("lora", "qlora", "multilora"),
        "lora_fp32_gradients requires a LoRA adapter",
        "remove it, or set `adapter: lora`",
        since=SINCE,
    ),
    Rule(
        "adapter",
        lambda d: d.get("adapter") == "mixlora" and not (d.get("lora_r") and d.get("lora_alpha")),
        "the mixlora adapter requires lora_r and lora_alpha",
        "set both",
        since=SINCE,
    ),
    Rule(
        "rl",
        lambda d: d.get("adapter") == "mixlora" and d.get("rl"),
        "MixLoRA is not compatible with preference training",
        "use `adapter: lora`",
        since=SINCE,
    ),
    Rule(
        "flash_attn_fuse_mlp",
        lambda d: d.get("adapter") == "mixlora" and d.get("flash_attn_fuse_mlp"),
        "fused modules are not supported with MixLoRA",
        "remove flash_attn_fuse_mlp",
        since=SINCE,
    ),
    Rule(
        "mixlora_top_k",
        lambda d: (d.get("mixlora_top_k") or 2) > (d.get("mixlora_num_experts") or 8),
        "mixlora_top_k is above mixlora_num_experts",
        "lower it",
        since=SINCE,
    ),
    *(_starts_at(key, least) for key, least in _LEAST.items()),
)

STEP_RULES = (
    Rule(
        "use_dft",
        lambda d: given(d, "use_dft") and given(d, "use_eaft"),
        "use_dft and use_eaft cannot be on together",
        "keep one of them",
        decides_memory=True,
        since=SINCE,
    ),
    Rule(
        "use_eaft",
        lambda d: _custom_loss(d) == "use_eaft" and _custom_loss_conflict(d),
        f"use_eaft cannot be combined with {', '.join(_CUSTOM_LOSS_CONFLICTS)} or context parallelism",
        "keep one of them",
        decides_memory=True,
        since=SINCE,
    ),
    Rule(
        "use_dft",
        lambda d: _custom_loss(d) == "use_dft" and _custom_loss_conflict(d),
        f"use_dft cannot be combined with {', '.join(_CUSTOM_LOSS_CONFLICTS)} or context parallelism",
        "keep one of them",
        decides_memory=True,
        since=SINCE,
    ),
    Rule(
        "cut_cross_entropy_c_grad_chunk_size",
        lambda d: isinstance(_chunk(d), int) and (_chunk(d) < 0 or _chunk(d) % 128),
        "cut_cross_entropy_c_grad_chunk_size must be `auto` or a multiple of 128",
        "correct it",
        since=SINCE,
    ),
    Rule(
        "cut_cross_entropy_c_grad_chunk_size",
        lambda d: _chunk(d) and not d.get("cut_cross_entropy_accum_c_fp32"),
        "cut_cross_entropy_c_grad_chunk_size requires cut_cross_entropy_accum_c_fp32: true",
        "set it, or remove the chunk size",
        since=SINCE,
    ),
    Rule(
        "selective_checkpointing",
        _fused_matmul_saved,
        "selective_checkpointing cannot save matmul outputs that a fused LoRA kernel changes in place",
        "set lora_mlp_kernel, lora_qkv_kernel and lora_o_kernel to false, or use `save: [attention]`",
        figures_with={"selective_checkpointing": {"save": ["attention"]}},
        since=SINCE,
    ),
    Rule(
        "selective_checkpointing",
        _fused_module_saved,
        "selective_checkpointing.save_modules names a module whose forward a fused kernel replaces",
        "set that kernel to false, or remove the entry",
        figures_with={"selective_checkpointing": {"save": ["attention"]}},
        since=SINCE,
    ),
    Rule(
        "selective_checkpointing",
        lambda d: any(not str(entry).strip() for entry in _saved(d, "save_modules") or []),
        "selective_checkpointing.save_modules has an empty entry",
        "remove it",
        since=SINCE,
    ),
    Rule(
        "selective_checkpointing",
        lambda d: isinstance(_saved(d, "save_matmul_min_k"), int) and _saved(d, "save_matmul_min_k") < 1,
        "selective_checkpointing.save_matmul_min_k must be at least 1",
        "raise it",
        since=SINCE,
    ),
)

CONTEXT_RULES = (
    Rule(
        "attn_implementation",
        lambda d: (
            parallel(d, "context") and d.get("attn_implementation") == "eager" and not d.get("use_glm_dsa_kernels")
        ),
        "context parallelism needs an attention kernel (sdpa, flash or flex), not eager",
        "set `attn_implementation: sdpa`",
        since=SINCE,
    ),
    Rule(
        "sample_packing",
        lambda d: (
            parallel(d, "context")
            and d.get("use_glm_dsa_kernels")
            and (d.get("sample_packing") or d.get("batch_flattening"))
        ),
        "GLM's sparse attention with context parallelism does not support packed samples",
        "set `sample_packing: false`",
        since=SINCE,
    ),
)


def _has_bad_weight(draft: Draft) -> bool:
    weights = [each.get("weight") for each in draft.get("datasets") or [] if isinstance(each, dict)]
    return any(isinstance(weight, (int, float)) and not 0 < weight <= 1 for weight in weights)


DATA_RULES = (
    Rule("datasets", _has_bad_weight, "a dataset's weight must be above 0 and at most 1", "correct it", since=SINCE),
)

RULES_OF_0_20 = (*DATA_RULES, *ADAPTER_RULES, *STEP_RULES, *CONTEXT_RULES)
