"""What axolotl 0.19 refuses, with its reason. Only rules that are really in axolotl, and that a single-GPU or supervised
configuration can hit. Source: axolotl `utils/schemas/{validation,config,peft}.py` and `integrations/*/args.py`, 0.19.0.

Keys that a run needs but memory does not (`datasets`, `learning_rate`) are not asked for.
"""

from __future__ import annotations

import re
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


def reject(draft: Draft) -> None:
    """Raises the first broken rule as a `ConfigError`."""
    for rules in (QUANTISATION_RULES, ADAPTER_RULES, TRAINING_RULES, EVALUATION_RULES, CHECKPOINTING_RULES, LOSS_RULES):
        for rule in rules:
            if rule.broken(draft):
                raise draft.error("axolotl refuses this: " + rule.problem, rule.key, remedy=rule.remedy)
    _reject_cross_entropy(draft)
    _reject_regexes(draft)


def _given(draft: Draft, key: str) -> object:
    """The value as written, dropped plugin keys included: axolotl's `before` validators see the raw mapping."""
    return draft.values.get(key, draft.dropped.get(key))


def _reentrant(draft: Draft) -> object:
    return draft.sub("gradient_checkpointing_kwargs").get("use_reentrant")


def _is_lora(draft: Draft) -> bool:
    return draft.get("adapter") in ("lora", "qlora")


def _bits(draft: Draft) -> bool:
    return bool(draft.get("load_in_8bit") or draft.get("load_in_4bit"))


def _lora_kernels(draft: Draft) -> bool:
    return any(draft.get(key) for key in ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"))


def _evaluates_never(draft: Draft) -> bool:
    asked = draft.get("eval_steps") or draft.get("eval_strategy")
    zero = draft.values.get("val_set_size") == 0
    return bool(zero and asked and not draft.get("test_datasets") and draft.get("eval_strategy") != "no")


def _matmul_saved(draft: Draft) -> bool:
    """An entry other than `attention` that matches a matmul operator (with an adapter, its output is mutated)."""
    operators = ("aten::mm", "aten::addmm", "aten::matmul", "aten::bmm")
    saved = draft.sub("selective_checkpointing").get("save") or []
    return any(spec != "attention" and any(spec in name for name in operators) for spec in saved)


QUANTISATION_RULES = (
    Rule(
        "load_in_8bit",
        lambda d: not d.get("adapter") and d.get("load_in_8bit"),
        "load_in_8bit and load_in_4bit are not supported without an adapter",
        "set `adapter: lora`, or remove load_in_8bit for a full fine-tune",
    ),
    Rule(
        "load_in_4bit",
        lambda d: not d.get("adapter") and d.get("load_in_4bit"),
        "load_in_8bit and load_in_4bit are not supported without an adapter",
        "set `adapter: qlora`, or remove load_in_4bit for a full fine-tune",
    ),
    Rule(
        "load_in_8bit",
        lambda d: d.get("adapter") == "qlora" and d.get("load_in_8bit"),
        "qlora cannot be loaded in 8 bit",
        "use `load_in_4bit: true`, or `adapter: lora` with load_in_8bit",
    ),
    Rule(
        "gptq",
        lambda d: d.get("adapter") == "qlora" and d.get("gptq"),
        "qlora cannot be loaded from GPTQ weights",
        "use `adapter: lora` with gptq",
    ),
    Rule(
        "adapter",
        lambda d: d.get("adapter") == "qlora" and not d.get("load_in_4bit"),
        "qlora needs load_in_4bit: true",
        "add `load_in_4bit: true`, or use `adapter: lora`",
    ),
    Rule(
        "model_quantization_config",
        lambda d: d.get("model_quantization_config") and _bits(d),
        "model_quantization_config cannot be combined with load_in_8bit or load_in_4bit",
        "keep one of them",
    ),
    Rule(
        "gptq",
        lambda d: d.get("gptq") and d.get("revision_of_model"),
        "revision_of_model is not supported for GPTQ models",
        "download that revision and give its path as base_model",
    ),
    Rule(
        "quantize_moe_experts",
        lambda d: d.get("quantize_moe_experts") and d.get("lora_target_linear"),
        "lora_target_linear is not compatible with quantize_moe_experts",
        "name the experts with lora_target_parameters",
    ),
    Rule(
        "quantize_moe_experts",
        lambda d: d.get("quantize_moe_experts") and not _is_lora(d),
        "quantize_moe_experts requires adapter: lora or qlora",
        "set the adapter",
    ),
    Rule(
        "quantize_moe_experts",
        lambda d: d.get("quantize_moe_experts") and not _bits(d),
        "quantize_moe_experts requires load_in_4bit or load_in_8bit",
        "set one of them",
    ),
    Rule("qat", lambda d: d.get("qat") and d.get("peft"), "QAT and peft cannot be used together", "remove one"),
    Rule(
        "qat",
        lambda d: d.get("qat") and _bits(d),
        "QAT cannot be combined with load_in_8bit or load_in_4bit",
        "remove one",
    ),
    Rule(
        "ple_cpu_offload",
        lambda d: d.get("ple_cpu_offload") and not (_is_lora(d) and _bits(d)),
        "ple_cpu_offload requires qlora with load_in_4bit or lora with load_in_8bit",
        "remove it",
    ),
    Rule(
        "max_memory",
        lambda d: d.has("max_memory") and d.has("gpu_memory_limit"),
        "max_memory and gpu_memory_limit are mutually exclusive",
        "keep one of them",
    ),
)

ADAPTER_RULES = (
    Rule(
        "adapter",
        lambda d: (
            d.get("adapter") and d.get("adapter") not in ("lora", "qlora", "llama-adapter", "mora") and not d.plugins
        ),
        "the adapter is not built in and no plugin registers it",
        "use lora, qlora or llama-adapter, or list the plugin that provides it",
    ),
    Rule(
        "adapter",
        lambda d: d.get("adapter") == "mora" and "mora" not in d.plugins,
        "the adapter is not built in and was not registered by a plugin",
        "add `axolotl.integrations.mora.MoraPlugin` to `plugins:`",
    ),
    Rule(
        "lora_dropout",
        lambda d: d.get("lora_target_parameters") and d.get("lora_dropout"),
        "lora_dropout must be 0 when lora_target_parameters is set",
        "set `lora_dropout: 0`",
    ),
    Rule(
        "unfrozen_parameters",
        lambda d: d.get("adapter") and d.get("peft_layers_to_transform") and d.get("unfrozen_parameters"),
        "unfrozen_parameters with peft_layers_to_transform can have unexpected behaviour",
        "remove one of them",
    ),
    Rule(
        "peft_layers_pattern",
        lambda d: d.get("peft_layers_pattern") and not d.get("peft_layers_to_transform"),
        "peft_layers_pattern requires peft_layers_to_transform",
        "add peft_layers_to_transform",
    ),
    Rule(
        "flash_attn_fuse_mlp",
        lambda d: _is_lora(d) and d.get("flash_attn_fuse_mlp"),
        "fused modules are not supported with LoRA",
        "remove flash_attn_fuse_mlp",
    ),
    Rule(
        "use_onebitllms",
        lambda d: _is_lora(d) and d.get("use_onebitllms"),
        "LoRA is not supported with use_onebitllms",
        "remove one of them",
    ),
    Rule(
        "lr_groups",
        lambda d: d.get("lr_groups") and d.get("loraplus_lr_ratio"),
        "lr_groups and loraplus_lr_ratio cannot be used together",
        "keep one of them",
    ),
    Rule(
        "load_in_8bit",
        lambda d: _lora_kernels(d) and d.get("adapter") == "lora" and d.get("load_in_8bit"),
        "lora_mlp_kernel, lora_qkv_kernel and lora_o_kernel are not compatible with 8-bit LoRA",
        "remove the kernels or load_in_8bit",
    ),
    Rule(
        "trust_remote_code",
        lambda d: _lora_kernels(d) and d.get("trust_remote_code"),
        "the LoRA kernels are not compatible with trust_remote_code",
        "set lora_mlp_kernel, lora_qkv_kernel and lora_o_kernel to false",
    ),
    Rule(
        "relora",
        lambda d: d.get("relora") and not d.get("jagged_restart_steps"),
        "jagged_restart_steps must be set to use ReLoRA",
        "add jagged_restart_steps",
    ),
    Rule(
        "relora", lambda d: d.get("relora") and not d.get("adapter"), "ReLoRA needs an adapter", "set `adapter: lora`"
    ),
    Rule(
        "relora",
        lambda d: d.get("relora") and (d.get("fsdp") or d.get("fsdp_config") or d.get("deepspeed")),
        "FSDP and DeepSpeed are not supported with ReLoRA",
        "remove them",
    ),
    Rule(
        "optimizer",
        lambda d: d.get("optimizer") == "q_galore_adamw8bit" and d.get("adapter"),
        "q_galore_adamw8bit trains full-precision parameters and is incompatible with an adapter",
        "remove the adapter or pick another optimizer",
    ),
    Rule(
        "optimizer",
        lambda d: d.get("optimizer") == "polora" and not _is_lora(d),
        "polora only updates LoRA factors and requires adapter: lora or qlora",
        "set the adapter or pick another optimizer",
    ),
    Rule(
        "fp32_norms",
        lambda d: d.get("fp32_norms") and not (d.get("fsdp_config") and str(d.get("fsdp_version")) == "2"),
        "fp32_norms requires FSDP2 (fsdp_config and fsdp_version: 2)",
        "remove it on one GPU",
    ),
)

TRAINING_RULES = (
    Rule(
        "batch_size",
        lambda d: (
            d.values.get("batch_size")
            and not d.values.get("micro_batch_size")
            and not d.values.get("gradient_accumulation_steps")
        ),
        "at least two of micro_batch_size, gradient_accumulation_steps, batch_size must be set",
        "set micro_batch_size and gradient_accumulation_steps",
    ),
    Rule(
        "batch_size",
        lambda d: d.values.get("gradient_accumulation_steps") and d.values.get("batch_size"),
        "only one of gradient_accumulation_steps and batch_size may be set",
        "remove batch_size",
    ),
    Rule(
        "warmup_ratio",
        lambda d: d.get("warmup_steps") and d.get("warmup_ratio"),
        "warmup_steps and warmup_ratio are mutually exclusive",
        "keep one of them",
    ),
    Rule(
        "save_strategy",
        lambda d: d.get("save_strategy") and d.get("save_steps") and d.get("save_strategy") != "steps",
        "save_strategy and save_steps mismatch",
        "set `save_strategy: steps` or remove save_steps",
    ),
    Rule(
        "saves_per_epoch",
        lambda d: d.get("saves_per_epoch") and d.get("save_steps"),
        "save_steps and saves_per_epoch are mutually exclusive",
        "keep one of them",
    ),
    Rule(
        "neftune_noise_alpha",
        lambda d: d.has("neftune_noise_alpha") and d.get("neftune_noise_alpha") <= 0,
        "neftune_noise_alpha must be above 0",
        "remove it to train without noise",
    ),
    Rule(
        "sample_packing",
        lambda d: d.get("sample_packing") and d.get("rl"),
        "sample_packing does not work with RLHF training",
        "set `sample_packing: false`",
    ),
    Rule(
        "max_steps",
        lambda d: d.get("pretraining_dataset") and not d.get("max_steps"),
        "max_steps must be set with pretraining_dataset: the trainer can't infer the length of a stream",
        "set max_steps",
    ),
    Rule(
        "max_steps",
        lambda d: d.get("streaming") and not d.get("max_steps"),
        "max_steps must be set with streaming datasets",
        "set max_steps",
    ),
    Rule(
        "val_set_size",
        lambda d: (d.get("pretraining_dataset") or d.get("streaming")) and d.get("val_set_size"),
        "val_set_size is not supported with streamed datasets",
        "name the evaluation data in test_datasets",
    ),
    Rule(
        "scaling_softmax",
        lambda d: d.get("scaling_softmax") and d.get("attn_implementation") != "flex_attention",
        "scaling_softmax requires flex attention",
        "set `attn_implementation: flex_attention`",
    ),
    Rule(
        "flash_optimum",
        lambda d: d.get("flash_optimum") and (d.get("fp16") or d.get("bf16")),
        "AMP is not supported with BetterTransformer",
        "remove flash_optimum",
    ),
    Rule(
        "fp8_config",
        lambda d: d.has("fp8_config") and not d.get("fp8"),
        "fp8_config requires fp8: true",
        "set `fp8: true` or remove fp8_config",
    ),
    Rule(
        "torch_compile_options",
        lambda d: d.has("torch_compile_options") and not d.get("torch_compile"),
        "torch_compile_options is set but torch_compile is not",
        "set `torch_compile: true`",
    ),
    Rule(
        "fsdp", lambda d: d.get("deepspeed") and d.get("fsdp"), "deepspeed and fsdp cannot be used together", "keep one"
    ),
    Rule(
        "deepcompile",
        lambda d: d.get("deepcompile") and not d.get("deepspeed"),
        "DeepCompile needs DeepSpeed",
        "remove it",
    ),
)

EVALUATION_RULES = (
    Rule(
        "val_set_size",
        lambda d: d.get("test_datasets") and d.get("val_set_size"),
        "a non-zero val_set_size cannot be used with test_datasets",
        "set `val_set_size: 0`",
    ),
    Rule(
        "eval_strategy",
        lambda d: d.get("eval_strategy") and d.get("eval_steps") and d.get("eval_strategy") != "steps",
        "eval_strategy and eval_steps mismatch",
        "set `eval_strategy: steps` or remove eval_steps",
    ),
    Rule(
        "val_set_size",
        _evaluates_never,
        "eval_steps and eval_strategy are not supported with val_set_size == 0",
        "remove them, or set val_set_size",
    ),
    Rule(
        "evals_per_epoch",
        lambda d: d.get("evals_per_epoch") and d.get("eval_steps"),
        "eval_steps and evals_per_epoch are mutually exclusive",
        "keep one of them",
    ),
    Rule(
        "eval_strategy",
        lambda d: d.get("evals_per_epoch") and d.get("eval_strategy") and d.get("eval_strategy") != "steps",
        "eval_strategy must be empty or `steps` with evals_per_epoch",
        "remove eval_strategy",
    ),
    Rule(
        "do_bench_eval",
        lambda d: d.get("do_bench_eval") and not (d.get("evals_per_epoch") or d.get("eval_steps")),
        "do_bench_eval requires evals_per_epoch or eval_steps",
        "set one of them",
    ),
    Rule(
        "eval_sample_packing",
        lambda d: d.get("sample_packing") and d.get("eval_table_size") and d.get("eval_sample_packing") is not False,
        "eval_table_size is not supported with packed evaluation",
        "set `eval_sample_packing: false`",
    ),
    Rule(
        "do_causal_lm_eval",
        lambda d: (
            d.get("do_causal_lm_eval")
            and (d.get("eval_sample_packing") or (d.get("sample_packing") and not d.has("eval_sample_packing")))
        ),
        "do_causal_lm_eval needs eval_sample_packing: false",
        "set `eval_sample_packing: false`",
    ),
)

CHECKPOINTING_RULES = (
    Rule(
        "gradient_checkpointing_kwargs",
        lambda d: d.get("unfrozen_parameters") and _reentrant(d) is True,
        "use_reentrant must be false with a partially frozen model (unfrozen_parameters)",
        "set `use_reentrant: false`",
    ),
    Rule(
        "activation_offloading",
        lambda d: d.get("activation_offloading") and not d.get("gradient_checkpointing"),
        "activation_offloading requires gradient_checkpointing",
        "set `gradient_checkpointing: true`",
    ),
    Rule(
        "selective_checkpointing",
        lambda d: d.get("selective_checkpointing") and not d.get("gradient_checkpointing"),
        "selective_checkpointing requires gradient_checkpointing",
        "set `gradient_checkpointing: true`",
    ),
    Rule(
        "selective_checkpointing",
        lambda d: d.get("selective_checkpointing") and _reentrant(d),
        "selective_checkpointing requires non-reentrant checkpointing",
        "set `use_reentrant: false` under gradient_checkpointing_kwargs",
    ),
    Rule(
        "selective_checkpointing",
        lambda d: (
            d.get("selective_checkpointing") and d.get("activation_offloading") not in (None, False, "hidden_states")
        ),
        "selective_checkpointing only goes with activation_offloading: hidden_states",
        "remove activation_offloading",
    ),
    Rule(
        "selective_checkpointing",
        lambda d: d.get("adapter") and _matmul_saved(d),
        "selective_checkpointing.save names matmul operators, which an adapter mutates in place",
        "use `save: [attention]`",
    ),
    Rule(
        "gradient_checkpointing",
        lambda d: "mpt" in str(d.get("base_model")).lower() and d.get("gradient_checkpointing"),
        "gradient_checkpointing is not supported for MPT models",
        "set `gradient_checkpointing: false`",
    ),
    Rule(
        "activation_offloading",
        lambda d: d.get("activation_offloading") == "hidden_states" and _reentrant(d) and d.get("unfrozen_parameters"),
        "hidden_states offloading with reentrant checkpointing is incompatible with unfrozen_parameters",
        "set `use_reentrant: false`",
    ),
)

LOSS_RULES = (
    Rule(
        "liger_glu_activation",
        lambda d: (
            d.get("liger_glu_activation")
            and d.values.get("tiled_mlp") is True
            and not d.values.get("tiled_mlp_use_original_mlp")
        ),
        "liger_glu_activation and tiled_mlp need tiled_mlp_use_original_mlp: true",
        "add `tiled_mlp_use_original_mlp: true`",
    ),
    Rule(
        "liger_use_token_scaling",
        lambda d: d.get("liger_use_token_scaling") and not d.get("liger_fused_linear_cross_entropy"),
        "liger_use_token_scaling requires liger_fused_linear_cross_entropy",
        "set it too",
    ),
    Rule(
        "cut_cross_entropy",
        lambda d: (
            d.is_live("cut_cross_entropy")
            and d.values.get("cut_cross_entropy")
            and not (d.values.get("bf16") or d.values.get("fp16"))
        ),
        "Cut Cross Entropy requires fp16 or bf16 training",
        "set `bf16: true` or `bf16: auto`",
    ),
    Rule(
        "chunked_cross_entropy",
        lambda d: "cut_cross_entropy" in d.plugins and d.get("chunked_cross_entropy"),
        "the Cut Cross Entropy plugin does not go with chunked_cross_entropy",
        "remove one of them",
    ),
    Rule(
        "use_scattermoe",
        lambda d: d.get("use_scattermoe") and d.get("use_sonicmoe"),
        "use_scattermoe and use_sonicmoe cannot be used together",
        "keep one of them",
    ),
)

_CROSS_ENTROPY = (
    "cut_cross_entropy",
    "chunked_cross_entropy",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
)


def _reject_cross_entropy(draft: Draft) -> None:
    """`check_cross_entropy_conflicts`."""
    on = [key for key in _CROSS_ENTROPY if _given(draft, key)]
    if len(on) > 1:
        raise draft.error(
            f"axolotl refuses this: only one cross-entropy optimisation can be on, found {', '.join(on)}",
            on[1],
            remedy="keep one of them",
        )


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
