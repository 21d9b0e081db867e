"""Many GPUs, and preference training. Source: axolotl `utils/schemas/validation.py` `OptimizationValidationMixin`,
`ComplexValidationMixin`, `RLValidationMixin`, `EBFTValidationMixin`; `utils/schemas/config.py`."""

from __future__ import annotations

from axmem_trace.config.derive.attention import base_name
from axmem_trace.config.derive.fsdp import requests_fsdp
from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.rule import Rule, bits, fsdp2, given


def _fsdp_option(draft: Draft, name: str) -> object:
    return draft.sub("fsdp_config").get(name)


def _context_parallel(draft: Draft) -> bool:
    return (draft.get("context_parallel_size") or 1) > 1 and not draft.get("use_glm_dsa_kernels")


def _compiled_ebft(draft: Draft) -> bool:
    strided = draft.sub("ebft").get("mode") == "strided"
    return bool(strided and draft.get("torch_compile") is True and draft.get("gradient_checkpointing"))


PARALLELISM_RULES = (
    Rule(
        "optimizer",
        lambda d: (
            d.get("fsdp_config")
            and "8bit" in str(d.get("optimizer"))
            and _fsdp_option(d, "offload_params")
            and not fsdp2(d)
        ),
        "FSDP1 with offload_params is not compatible with an 8-bit optimizer",
        "pick another optimizer, or set `offload_params: false`",
        until="0.19.0",
    ),
    Rule(
        "optimizer",
        lambda d: d.get("fsdp_config") and fsdp2(d) and d.get("optimizer") in ("adamw_8bit", "adamw_bnb_8bit"),
        "FSDP2 is not compatible with bitsandbytes' 8-bit AdamW",
        "use adamw_torch_8bit",
        figures_with={"optimizer": "adamw_torch_8bit"},
    ),
    Rule(
        "fsdp_config",
        lambda d: fsdp2(d) and _fsdp_option(d, "cpu_ram_efficient_loading") and d.get("load_in_4bit"),
        "FSDP2 does not support cpu_ram_efficient_loading with load_in_4bit",
        "set `cpu_ram_efficient_loading: false` under fsdp_config",
        until="0.19.0",
    ),
    Rule(
        "fsdp_config",
        lambda d: (
            d.get("model_quantization_config") == "Mxfp4Config" and _fsdp_option(d, "cpu_ram_efficient_loading") is True
        ),
        "cpu_ram_efficient_loading is not supported with model_quantization_config: Mxfp4Config",
        "set `cpu_ram_efficient_loading: false` under fsdp_config",
    ),
    Rule(
        "fsdp_config",
        lambda d: _fsdp_option(d, "cpu_offload_pin_memory") is False and not fsdp2(d),
        "FSDP1 does not support cpu_offload_pin_memory: false",
        "set `fsdp_version: 2`",
        until="0.19.0",
    ),
    Rule(
        "fsdp_config",
        lambda d: _fsdp_option(d, "cpu_offload_pin_memory") is False and not _fsdp_option(d, "offload_params"),
        "cpu_offload_pin_memory: false requires offload_params",
        "set `offload_params: true` under fsdp_config",
    ),
    Rule(
        "fsdp",
        lambda d: "falcon" in str(d.get("base_model")).lower() and d.get("fsdp"),
        "FSDP is not supported for Falcon models",
        "remove fsdp",
    ),
    Rule(
        "liger_rms_norm",
        lambda d: (d.get("tensor_parallel_size") or 1) > 1 and given(d, "liger_rms_norm"),
        "liger_rms_norm is incompatible with tensor parallelism",
        "remove it",
    ),
    Rule(
        "liger_fused_linear_cross_entropy",
        lambda d: (d.get("tensor_parallel_size") or 1) > 1 and d.get("liger_fused_linear_cross_entropy"),
        "tensor parallelism is not compatible with Liger's losses",
        "remove it",
    ),
    Rule(
        "ple_cpu_offload",
        lambda d: d.get("ple_cpu_offload") and (requests_fsdp(d) or d.get("deepspeed")),
        "ple_cpu_offload is not compatible with FSDP or DeepSpeed",
        "remove it",
    ),
    Rule(
        "context_parallel_size",
        lambda d: _context_parallel(d) and base_name(d.get("attn_implementation")) != "flash_attention_2",
        "context_parallel_size above 1 requires attn_implementation: flash_attention_2",
        "set `attn_implementation: flash_attention_2`",
        decides_memory=True,
        until="0.19.0",
    ),
    Rule(
        "micro_batch_size",
        lambda d: _context_parallel(d) and d.get("sample_packing") and (d.get("micro_batch_size") or 1) > 1,
        "micro_batch_size must be 1 with sample_packing and context_parallel_size above 1",
        "set `micro_batch_size: 1`",
        figures_with={"micro_batch_size": 1},
        until="0.19.0",
    ),
    Rule(
        "rl",
        lambda d: d.get("rl") in ("dpo", "kto", "orpo", "ipo") and fsdp2(d) and bits(d),
        "FSDP2 does not support load_in_8bit or load_in_4bit in preference training",
        "use DeepSpeed, or set `fsdp_version: 1`",
        until="0.19.0",
    ),
    Rule(
        "remove_unused_columns",
        lambda d: d.get("rl") == "kto" and d.get("remove_unused_columns") is not False,
        "rl: kto needs remove_unused_columns: false",
        "add `remove_unused_columns: false`",
    ),
    Rule(
        "dpo_loss_type",
        lambda d: (d.has("dpo_loss_type") or d.has("dpo_loss_weights")) and d.get("rl") != "dpo",
        "dpo_loss_type and dpo_loss_weights are for rl: dpo only",
        "remove them",
    ),
    Rule(
        "fp8_enable_fsdp_float8_all_gather",
        lambda d: d.get("fp8_enable_fsdp_float8_all_gather") and not fsdp2(d),
        "fp8_enable_fsdp_float8_all_gather requires FSDP2 (fsdp_version: 2)",
        "remove it on one GPU",
        until="0.19.0",
    ),
    Rule(
        "dpo_use_liger_kernel",
        lambda d: (
            d.get("dpo_use_liger_kernel") and (d.get("rl") == "ipo" or (d.get("dpo_loss_type") or [""])[0] == "ipo")
        ),
        "dpo_use_liger_kernel does not support the loss ipo",
        "remove it, or use another loss",
        until="0.20.0",
    ),
    Rule(
        "ebft",
        lambda d: d.get("rl") == "ebft" and not d.get("ebft"),
        "rl: ebft needs an ebft section",
        "add `ebft:` with its mode",
        decides_memory=True,
    ),
    Rule(
        "torch_compile",
        lambda d: d.get("rl") == "ebft" and _compiled_ebft(d),
        "torch_compile with gradient_checkpointing breaks EBFT's strided mode",
        "remove torch_compile",
    ),
)
