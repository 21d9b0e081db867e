"""Names that other trainers and libraries use for keys of axolotl.

They come from Hugging Face's `TrainingArguments`, `SFTConfig`, `LoraConfig`, `BitsAndBytesConfig` and `from_pretrained`,
from configurations of LLaMA-Factory, Unsloth and torchtune, and from model cards. `foreign_keys.py` has advice for keys
that have no equivalent in axolotl.
"""

from __future__ import annotations

_OTHER_NAMES: dict[str, str] = {
    # what is trained
    "base_model": (
        "model model_name model_name_or_path model_id model_path model_dir pretrained_model_name_or_path "
        "base_model_name base_model_name_or_path hf_model"
    ),
    "revision_of_model": "model_revision_id",
    "trust_remote_code": "trust_remote_codes",
    "resume_from_checkpoint": "resume_from",
    "adapter": "finetuning_type finetune_type tuner_type train_type peft_type",
    "lora_model_dir": "adapter_name_or_path adapter_path lora_path",
    "overrides_of_model_config": "model_config_kwargs",
    # adapters
    "lora_r": "lora_rank rank r lora_dim",
    "lora_alpha": "alpha",
    "lora_target_modules": "lora_target target_modules lora_targets lora_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save additional_target",
    "peft_use_dora": "use_dora lora_use_dora dora",
    "peft_use_rslora": "use_rslora lora_use_rslora rslora",
    "peft_init_lora_weights": "init_lora_weights",
    "peft_layers_to_transform": "layers_to_transform lora_layers_to_transform",
    "peft_layer_replication": "layer_replication",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "lora_fan_in_fan_out": "fan_in_fan_out",
    "loraplus_lr_ratio": "loraplus_ratio",
    "unfrozen_parameters": "freeze_modules",
    "freeze_mm_modules": "freeze_vision_tower",
    # batch and length
    "micro_batch_size": (
        "per_device_train_batch_size per_gpu_train_batch_size train_batch_size train_micro_batch_size_per_gpu "
        "device_batch_size per_device_batch_size train_micro_batch_size microbatch_size"
    ),
    "eval_batch_size": "per_device_eval_batch_size per_gpu_eval_batch_size val_batch_size",
    "gradient_accumulation_steps": (
        "gradient_accumulation grad_accumulation_steps grad_accum_steps accumulate_grad_batches"
    ),
    "sequence_len": (
        "max_seq_length max_seq_len max_sequence_length sequence_length seq_length seq_len max_length cutoff_len "
        "block_size model_max_length max_tokens context_length context_len"
    ),
    "sample_packing": "packing pack_sequences packed neat_packing",
    "batch_flattening": "padding_free",
    "pad_to_sequence_len": "pad_to_max_length",
    "eval_sample_packing": "eval_packing",
    "group_by_length": "length_grouped train_sampling_strategy",
    # optimizer and schedule
    "optimizer": "optim optimizer_type optimizer_name",
    "learning_rate": "lr max_lr",
    "lr_scheduler": "lr_scheduler_type scheduler scheduler_type",
    "num_epochs": "epochs num_train_epochs max_epochs",
    "max_steps": "max_train_steps total_steps num_steps",
    "warmup_steps": "num_warmup_steps",
    "warmup_ratio": "warmup_proportion",
    "adam_epsilon": "adam_eps",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "max_grad_norm": "gradient_clipping grad_clip clip_grad_norm gradient_clip_val",
    "weight_decay": "wd",
    "neftune_noise_alpha": "neftune_alpha",
    "seed": "random_state random_seed",
    # memory and speed
    "gradient_checkpointing": (
        "gradient_checkpoint use_gradient_checkpointing grad_checkpointing activation_checkpointing "
        "enable_activation_checkpointing"
    ),
    "activation_offloading": "enable_activation_offloading",
    "load_in_8bit": "load_8bit load_in_8bits",
    "load_in_4bit": "load_in_4bits",
    "attn_implementation": (
        "flash_attn use_flash_attention use_flash_attention_2 use_flash_attn flash_attention_2 flash_attn_2 "
        "flash_attention2 attention_implementation _attn_implementation use_sdpa sdpa_attention attention"
    ),
    "torch_compile": "compile use_torch_compile",
    "fp16": "use_fp16 half",
    "bf16": "use_bf16",
    "deepspeed": "deepspeed_config ds_config",
    # data
    "datasets": "dataset train_dataset train_datasets dataset_name dataset_path data_path train_file data_files",
    "test_datasets": (
        "val_dataset val_datasets valid_dataset valid_datasets validation_dataset validation_datasets eval_dataset "
        "eval_datasets test_dataset validation_file"
    ),
    "val_set_size": "test_size val_size validation_split validation_split_percentage eval_split",
    "dataset_num_proc": "preprocessing_num_workers num_proc",
    "chat_template": "template",
    "default_system_message": "system_prompt",
    "train_on_inputs": "train_on_prompt",
    "eot_tokens": "stop_tokens",
    "special_tokens": "pad_token bos_token eos_token unk_token",
    "tokens": "add_tokens additional_special_tokens new_tokens resize_vocab",
    "tokenizer_config": "tokenizer tokenizer_name tokenizer_name_or_path",
    "dataloader_num_workers": "num_workers",
    # running, saving, logging
    "hub_model_id": "push_to_hub hub_repo_id repo_id hf_repo hf_hub_repo push_to_hub_repo_id hub_model_name",
    "output_dir": "output out_dir save_dir output_path",
    "save_steps": "save_interval checkpoint_every save_every",
    "eval_steps": "eval_interval eval_every val_steps val_check_interval",
    "logging_steps": "log_interval log_every logging_interval log_every_n_steps",
    "save_total_limit": "max_checkpoints",
    "wandb_name": "wandb_run_name",
    "wandb_entity": "wandb_team",
    "wandb_project": "project_name",
    "early_stopping_patience": "early_stopping early_stop_patience",
    "metric_for_best_model": "metric",
    "load_best_model_at_end": "save_best",
    "rl": "stage rlhf_type",
    "dpo_loss_type": "loss_type",
    "rl_beta": "beta pref_beta",
}
"""Axolotl's key, and the names that others give it."""

SAME: dict[str, str] = {other: key for key, others in _OTHER_NAMES.items() for other in others.split()}
"""Unknown key -> axolotl's key with the same meaning."""
