"""From the keys of a configuration to the parts of a recipe: one file for each part.

base_model, model_kwargs     `base_model`, `revision_of_model`; `overrides_of_model_kwargs`
task                         the model's class, vocabulary and experts: `type_of_model`, `tokens`, `experts_implementation`
precision, quantisation, fake_quantisation    `bf16`, `fp8`; `load_in_4bit`, `gptq`; `qat`
adapter, saved_adapter, relora, freezing      `lora_*`, `peft_*`; `lora_model_dir`; `relora`; `unfrozen_parameters`
attention, kernels, loss     `attn_implementation`; `liger_*`, `lora_*_kernel`, `tiled_mlp`; `cut_cross_entropy`, `kd_*`
checkpointing                `gradient_checkpointing`, `activation_offloading`, `layer_offloading`
optimizer, batch, evaluation    `optimizer`; `micro_batch_size`, `sample_packing`; `eval_*`, `val_set_size`
objective, rollouts          `rl`, `dpo_*`, `reward_model`; `trl`
hardware, nccl, device_map   the card and the allocator; NCCL's buffers; `device_map`, `max_memory`
parallelism, fsdp, deepspeed, deepspeed_files    the engine and the mesh; `fsdp_config`; `deepspeed`
rank_stops                   keys with which a run on several GPUs certainly fails
"""
