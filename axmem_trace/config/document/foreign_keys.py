"""Keys of other trainers, of libraries' own configurations and of older releases, which axolotl does not know: what to
write instead. `foreign_names.py` lists those that axolotl has under another name.

A key that is in no table gets a suggestion only if it looks like a typing error (`nearest_key`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LIGER = "list `axolotl.integrations.liger.LigerPlugin` under `plugins`, and turn its kernels on by their own keys"
_SHARDING = "it shards everything; with FSDP2, `fsdp_config.reshard_after_forward` changes that"
_BITS = "write `adapter: qlora` with `load_in_4bit: true`, or `adapter: lora` with `load_in_8bit: true`"
ADVICE: dict[str, str] = {
    "relora_steps": "write `relora: true` with `jagged_restart_steps`",
    "relora_warmup_steps": "its key is `jagged_restart_warmup_steps`, with `relora: true`",
    "relora_anneal_steps": "its key is `jagged_restart_anneal_steps`, with `relora: true`",
    "use_peft": "the adapter is chosen with `adapter: lora` or `adapter: qlora`; without one all weights train",
    "use_lora": "write `adapter: lora`",
    "use_qlora": "write `adapter: qlora` with `load_in_4bit: true`",
    "lora": "write `adapter: lora`, with `lora_r`, `lora_alpha` and `lora_target_modules` at the top level",
    "qlora": "write `adapter: qlora` with `load_in_4bit: true`",
    "lora_config": "write its fields at the top level: `adapter`, `lora_r`, `lora_alpha`, `lora_target_modules`",
    "peft_config": "write its fields at the top level: `adapter`, `lora_r`, `lora_alpha`, `lora_target_modules`",
    "lora_bias": "axolotl always trains LoRA without biases",
    "bias": "axolotl always trains LoRA without biases",
    "lora_task_type": "the task follows from the base model and `reward_model`",
    "task_type": "the task follows from the base model and `reward_model`",
    "full_finetune": "leave out `adapter` to train all weights",
    "full_finetuning": "leave out `adapter` to train all weights",
    "quantization_config": "for a GPTQ checkpoint write `gptq: true`; bitsandbytes' options go under "
    "`bnb_config_kwargs`; a checkpoint that is quantised already needs no key",
    "bnb_config": "bitsandbytes' options go under `bnb_config_kwargs`",
    "quantization_bit": _BITS,
    "quant_bits": _BITS,
    "quantization_method": _BITS,
    "load_in_16bit": "without load_in_8bit and load_in_4bit the weights are loaded in 16 bit (`bf16` or `fp16`)",
    "bnb_4bit_quant_type": "axolotl uses nf4; another type goes under `bnb_config_kwargs`",
    "bnb_4bit_use_double_quant": "axolotl quantises twice; `bnb_config_kwargs` changes it",
    "bnb_4bit_compute_dtype": "axolotl computes in the dtype of `bf16` or `fp16`; `bnb_config_kwargs` changes it",
    "bnb_4bit_quant_storage": "it goes under `bnb_config_kwargs`",
    "double_quantization": "axolotl quantises twice; `bnb_config_kwargs` changes it",
    "use_double_quant": "axolotl quantises twice; `bnb_config_kwargs` changes it",
    "llm_int8_threshold": "it goes under `bnb_config_kwargs`, for qlora only",
    "load_in_fp8": "a checkpoint in fp8 needs no key; training in fp8 is `fp8: true`",
    "torch_dtype": "the dtype follows from `bf16`, `fp16`, `bfloat16` or `float16`",
    "dtype": "the dtype follows from `bf16`, `fp16`, `bfloat16` or `float16`",
    "precision": "the dtype follows from `bf16` and `fp16`",
    "mixed_precision": "write `bf16: true` or `fp16: true`",
    "bf16_full_eval": "axolotl has no key for the dtype of evaluation",
    "fp16_full_eval": "axolotl has no key for the dtype of evaluation",
    "pure_bf16": "write `bf16: true`: the weights are loaded in bf16",
    "fp16_opt_level": "it was apex's, which transformers 5 no longer has",
    "half_precision_backend": "transformers 5 has only one backend",
    "use_cache": "axolotl switches it off in training",
    "use_unsloth": "axolotl has no Unsloth: its own kernels are `lora_mlp_kernel`, `lora_qkv_kernel`, `lora_o_kernel`",
    "unsloth": "axolotl has no Unsloth: its own kernels are `lora_mlp_kernel`, `lora_qkv_kernel`, `lora_o_kernel`",
    "finetune_vision_layers": "write `freeze_mm_modules: true` to train only the language model",
    "finetune_language_layers": "axolotl names what trains with `lora_target_modules` or `unfrozen_parameters`",
    "use_liger_kernel": _LIGER,
    "use_liger": _LIGER,
    "liger_kernel": _LIGER,
    "enable_liger_kernel": _LIGER,
    "use_galore": "write `optimizer: galore_adamw` with `optim_target_modules`",
    "use_apollo": "write `optimizer: apollo_adamw` with `optim_target_modules`",
    "use_badam": "axolotl has no BAdam",
    "hub_token": "log in with `hf auth login`, or set HF_TOKEN in the environment",
    "hf_token": "log in with `hf auth login`, or set HF_TOKEN in the environment",
    "push_to_hub_token": "log in with `hf auth login`, or set HF_TOKEN in the environment",
    "use_auth_token": "log in with `hf auth login`, or set HF_TOKEN in the environment",
    "hub_private_repo": "axolotl has no key for it: make the repository private on the Hub",
    "hub_always_push": "`hub_strategy` decides when the model is pushed",
    "hub_push": "`hub_model_id` names the repository that the model is pushed to",
    "report_to": "write `use_wandb`, `use_mlflow`, `use_comet`, `use_swanlab` or `use_tensorboard`",
    "logging_strategy": "`logging_steps` is the number of steps between two log lines",
    "logging_first_step": "axolotl sets it itself",
    "logging_dir": "axolotl logs under `output_dir`",
    "log_level": "set AXOLOTL_LOG_LEVEL in the environment",
    "do_train": "`axolotl train` trains",
    "do_eval": "`val_set_size` or `test_datasets`, with `eval_steps`, turn evaluation on",
    "do_predict": "`axolotl inference` generates",
    "predict_with_generate": "`generate_samples` or `do_causal_lm_eval` generate in training",
    "eval_accumulation_steps": "axolotl keeps no logits of evaluation",
    "eval_on_start": "axolotl evaluates before the first step wherever it evaluates",
    "prediction_loss_only": "axolotl keeps only the loss of evaluation, without a key",
    "overwrite_output_dir": "axolotl overwrites `output_dir` by itself",
    "overwrite_cache": "delete the folder that `dataset_prepared_path` names to tokenise again",
    "dataloader_persistent_workers": "axolotl has no key for it; it only uses host memory",
    "dataset_text_field": "the field is named in the item of `datasets` (`field: text` with `type: completion`)",
    "dataset_kwargs": "the options of a dataset are fields of its item under `datasets`",
    "dataset_format": "the format is `type:` of the item under `datasets`",
    "formatting_func": "the format is `type:` of the item under `datasets`",
    "messages_field": "it is `field_messages` of the item under `datasets`",
    "split": "it is a field of the item under `datasets`",
    "max_samples": "`shards` of an item under `datasets`, or a split such as `train[:1000]`, take a part of it",
    "max_train_samples": "`shards` of an item under `datasets`, or a split such as `train[:1000]`, take a part of it",
    "max_eval_samples": "`val_set_size` with a whole number is the number of samples for evaluation",
    "completion_only_loss": "`train_on_inputs: false` is axolotl's default",
    "assistant_only_loss": "it is `roles_to_train` of an item under `datasets`",
    "train_on_responses_only": "it is `roles_to_train` of an item under `datasets`",
    "add_eos_token": "the prompt's `type` and `chat_template` decide it",
    "add_bos_token": "the prompt's `type` and `chat_template` decide it",
    "padding": "`pad_to_sequence_len` pads",
    "padding_side": "axolotl's collators choose the side",
    "tokenizer_padding_side": "axolotl's collators choose the side",
    "truncation": "`excess_length_strategy` decides what is done with long samples",
    "label_smoothing_factor": "axolotl has no key for it",
    "label_names": "axolotl has no key for it",
    "data_seed": "`seed` is used for the data as well",
    "full_determinism": "axolotl has no key for it",
    "fsdp_offload_params": "it is `offload_params` under `fsdp_config`",
    "fsdp_sharding_strategy": "under `fsdp_config`: `reshard_after_forward` with `fsdp_version: 2`",
    "fsdp_auto_wrap_policy": "it is `auto_wrap_policy` under `fsdp_config`",
    "fsdp_config.sharding_strategy": _SHARDING,
    "fsdp_config.fsdp_sharding_strategy": _SHARDING,
    "fsdp_config.limit_all_gathers": "FSDP always limits them",
    "fsdp_config.fsdp_limit_all_gathers": "FSDP always limits them",
    "eta_min": "write `cosine_min_lr_ratio`, or give it under `lr_scheduler_kwargs`",
    "fsdp_transformer_layer_cls_to_wrap": "it is `transformer_layer_cls_to_wrap` under `fsdp_config`",
    "zero_stage": "the stage is in the JSON file that `deepspeed` names",
    "zero_optimization": "it goes in the JSON file that `deepspeed` names",
    "tp_size": "write `tensor_parallel_size`",
    "num_gpus": "the launcher decides the number of GPUs; here it is --gpus",
    "n_gpu": "the launcher decides the number of GPUs; here it is --gpus",
    "num_processes": "the launcher decides the number of GPUs; here it is --gpus",
    "num_machines": "the launcher decides the number of machines",
    "rope_theta": "it goes under `overrides_of_model_config`",
    "rope_type": "it goes under `overrides_of_model_config`, in `rope_parameters`",
    "max_position_embeddings": "it goes under `overrides_of_model_config`",
    "vocab_size": "it follows from the base model and `tokens`",
    "attention_dropout": "it goes under `overrides_of_model_config`",
    "max_prompt_length": "write `max_prompt_len`",
    "max_completion_length": "it goes under `trl`",
    "num_generations": "it goes under `trl`",
    "use_vllm": "it goes under `trl`",
    "reward_funcs": "it goes under `trl`",
    "version": "axolotl reads no such key",
    "name": "axolotl reads no such key",
    "description": "axolotl reads no such key",
}
"""Unknown key -> what to do, if no single key means the same."""

SLIPPED_KEYS_NEVER_PROPOSED = frozenset({"push_dataset_to_hub", "trust_remote_code", "hf_use_auth_token"})
"""These keys upload data, run code or use a token: never suggest one only because its name is similar."""
_SHORT_WORD, _LONG_WORD = 4, 7


def nearest_key(name: str, known: Iterable[str]) -> str:
    """The known key that `name` is a typing error of; empty if there is none.

    Either both are equal without underscores and capitals, or they have the same words with at most one wrong letter in
    each. A word of seven or more letters may have two wrong letters. A word of fewer than four letters, or with a digit,
    may have none.

    >>> nearest_key("micro_batch_sise", ["micro_batch_size"]), nearest_key("learningRate", ["learning_rate"])
    ('micro_batch_size', 'learning_rate')
    >>> nearest_key("load_in_16bit", ["load_in_4bit"]), nearest_key("use_peft", ["use_eaft"])
    ('', '')
    """
    candidates = [key for key in known if key not in SLIPPED_KEYS_NEVER_PROPOSED]
    for key in candidates:
        if _letters(key) == _letters(name):
            return key
    scored = [(distance, key) for key in candidates if (distance := _slips(name, key)) is not None]
    return min(scored)[1] if scored else ""


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _slips(name: str, key: str) -> int | None:
    """The number of letters that differ; None if there are too many for a typing error."""
    words, others = re.split(r"[_\-.]", name.lower()), key.split("_") if "." not in key else re.split(r"[_.]", key)
    if len(words) != len(others):
        return None
    total = 0
    for word, other in zip(words, others, strict=True):
        if word == other:
            continue
        length = min(len(word), len(other))
        allowed = 0 if length < _SHORT_WORD or re.search(r"\d", word + other) else 2 if length >= _LONG_WORD else 1
        distance = edit_distance(word, other)
        if distance > allowed:
            return None
        total += distance
    return total


def edit_distance(one: str, two: str) -> int:
    """The number of edits that make the words equal: add, drop or replace a letter, or swap two neighbours.

    >>> edit_distance("batch", "batch"), edit_distance("bacth", "batch"), edit_distance("sise", "size")
    (0, 1, 1)
    """
    before: list[int] = []
    row = list(range(len(two) + 1))
    for i, letter in enumerate(one, start=1):
        older, before, row = before, row, [i]
        for j, other in enumerate(two, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == two[j - 2] and one[i - 2] == other:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]
