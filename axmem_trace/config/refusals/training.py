"""Batches, data and evaluation. Source: axolotl `utils/schemas/validation.py`."""

from __future__ import annotations

from axmem_trace.config.derive.attention import supports_packing
from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.rule import Rule


def _evaluates_never(draft: Draft) -> bool:
    asked = draft.get("eval_steps") or draft.get("eval_strategy")
    zero = draft.values.get("val_set_size") == 0
    return bool(zero and asked and not draft.get("test_datasets") and draft.get("eval_strategy") != "no")


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
        decides_memory=True,
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
        "save_strategy",
        lambda d: d.get("save_strategy") == "best" and not d.get("metric_for_best_model"),
        "save_strategy: best needs metric_for_best_model",
        "add `metric_for_best_model: eval_loss`",
    ),
    Rule(
        "early_stopping_patience",
        lambda d: d.get("early_stopping_patience") and not (d.get("save_steps") and d.get("eval_steps")),
        "early_stopping_patience requires save_steps and eval_steps",
        "set both",
    ),
    Rule(
        "early_stopping_patience",
        lambda d: (
            d.get("early_stopping_patience")
            and d.get("save_steps")
            and d.get("eval_steps")
            and d.get("save_steps") % d.get("eval_steps") != 0
        ),
        "early_stopping_patience requires that eval_steps divides save_steps",
        "make save_steps a multiple of eval_steps",
    ),
    Rule(
        "neftune_noise_alpha",
        lambda d: d.has("neftune_noise_alpha") and d.get("neftune_noise_alpha") <= 0,
        "neftune_noise_alpha must be above 0",
        "remove it to train without noise",
        figures_with={"neftune_noise_alpha": None},
    ),
    Rule(
        "sample_packing",
        lambda d: d.get("sample_packing") and d.get("rl"),
        "sample_packing does not work with RLHF training",
        "set `sample_packing: false`",
        figures_with={"sample_packing": False},
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
        "batch_flattening",
        lambda d: d.get("batch_flattening") is True and not supports_packing(d),
        "batch_flattening needs a variable-length attention kernel",
        "set `attn_implementation: flash_attention_2`",
        decides_memory=True,
    ),
    Rule(
        "batch_flattening",
        lambda d: d.get("batch_flattening") is True and d.get("sample_packing"),
        "batch_flattening is not compatible with sample_packing",
        "keep one of them",
        figures_with={"batch_flattening": False},
    ),
    Rule(
        "include_tokens_per_second",
        lambda d: d.get("pretraining_dataset") and d.get("include_tokens_per_second"),
        "pretraining_dataset and include_tokens_per_second cannot be used together",
        "remove include_tokens_per_second",
    ),
    Rule(
        "datasets",
        lambda d: d.get("streaming") and d.get("sample_packing") and len(d.get("datasets") or []) > 1,
        "sample packing with several streamed datasets is not supported",
        "keep one dataset",
    ),
    Rule(
        "attn_implementation",
        lambda d: d.get("attn_implementation") == "flash_attention_torch",
        "flash_attention_torch needs a newer transformers than the 5.16.1 that axolotl 0.19 installs",
        "use another kernel, such as flash_attention_2",
        figures_with={"attn_implementation": "flash_attention_2"},
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
    Rule(  # optimum 1.16.2 `utils/import_utils.py` imports transformers' `is_tf_available`
        "flash_optimum",
        lambda d: d.get("flash_optimum"),
        "optimum 1.16.2, which axolotl 0.19 pins, cannot be imported together with transformers 5",
        "remove flash_optimum: transformers' own attention is SDPA already",
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
        "fsdp",
        lambda d: d.get("deepspeed") and d.get("fsdp"),
        "deepspeed and fsdp cannot be used together",
        "keep one",
        decides_memory=True,
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
        figures_with={"eval_sample_packing": False},
    ),
    Rule(
        "do_causal_lm_eval",
        lambda d: (
            d.get("do_causal_lm_eval")
            and (d.get("eval_sample_packing") or (d.get("sample_packing") and not d.has("eval_sample_packing")))
        ),
        "do_causal_lm_eval needs eval_sample_packing: false",
        "set `eval_sample_packing: false`",
        figures_with={"eval_sample_packing": False},
    ),
)
