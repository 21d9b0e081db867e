"""Quantisation and adapters. Source: axolotl `utils/schemas/{peft,validation,config}.py`."""

from __future__ import annotations

from axmem_trace.config.refusals.rule import Rule, bits, is_lora, lora_kernels

QUANTISATION_RULES = (
    Rule(
        "load_in_8bit",
        lambda d: not d.get("adapter") and d.get("load_in_8bit"),
        "load_in_8bit and load_in_4bit are not supported without an adapter",
        "set `adapter: lora`, or remove load_in_8bit for a full fine-tune",
        decides_memory=True,
    ),
    Rule(
        "load_in_4bit",
        lambda d: not d.get("adapter") and d.get("load_in_4bit"),
        "load_in_8bit and load_in_4bit are not supported without an adapter",
        "set `adapter: qlora`, or remove load_in_4bit for a full fine-tune",
        decides_memory=True,
    ),
    Rule(
        "load_in_8bit",
        lambda d: d.get("adapter") == "qlora" and d.get("load_in_8bit") and d.get("load_in_4bit"),
        "qlora cannot be loaded in 8 bit",
        "remove load_in_8bit",
        figures_with={"load_in_8bit": False},
    ),
    Rule(
        "load_in_8bit",
        lambda d: d.get("adapter") == "qlora" and d.get("load_in_8bit") and not d.get("load_in_4bit"),
        "qlora cannot be loaded in 8 bit, and needs load_in_4bit: true",
        "use `load_in_4bit: true`, or `adapter: lora` with load_in_8bit",
        decides_memory=True,
    ),
    Rule(
        "gptq",
        lambda d: d.get("adapter") == "qlora" and d.get("gptq"),
        "qlora cannot be loaded from GPTQ weights",
        "use `adapter: lora` with gptq",
    ),
    Rule(
        "adapter",
        lambda d: d.get("adapter") == "qlora" and not (d.get("load_in_4bit") or d.get("load_in_8bit")),
        "qlora needs load_in_4bit: true",
        "add `load_in_4bit: true`, or use `adapter: lora`",
        figures_with={"load_in_4bit": True},
    ),
    Rule(
        "model_quantization_config",
        lambda d: d.get("model_quantization_config") and bits(d),
        "model_quantization_config cannot be combined with load_in_8bit or load_in_4bit",
        "keep one of them",
        decides_memory=True,
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
        decides_memory=True,
    ),
    Rule(
        "quantize_moe_experts",
        lambda d: d.get("quantize_moe_experts") and not is_lora(d),
        "quantize_moe_experts requires adapter: lora or qlora",
        "set the adapter",
        decides_memory=True,
    ),
    Rule(
        "quantize_moe_experts",
        lambda d: d.get("quantize_moe_experts") and not bits(d),
        "quantize_moe_experts requires load_in_4bit or load_in_8bit",
        "set one of them",
        decides_memory=True,
    ),
    Rule(
        "qat",
        lambda d: d.get("qat") and d.get("peft"),
        "QAT and peft cannot be used together",
        "remove one",
        decides_memory=True,
    ),
    Rule(
        "qat",
        lambda d: d.get("qat") and bits(d),
        "QAT cannot be combined with load_in_8bit or load_in_4bit",
        "remove one",
        decides_memory=True,
    ),
    Rule(
        "ple_cpu_offload",
        lambda d: d.get("ple_cpu_offload") and not (is_lora(d) and bits(d)),
        "ple_cpu_offload requires qlora with load_in_4bit or lora with load_in_8bit",
        "remove it",
        figures_with={"ple_cpu_offload": False},
    ),
    Rule(
        "max_memory",
        lambda d: d.has("max_memory") and d.has("gpu_memory_limit"),
        "max_memory and gpu_memory_limit are mutually exclusive",
        "keep one of them",
        decides_memory=True,
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
        decides_memory=True,
    ),
    Rule(
        "adapter",
        lambda d: d.get("adapter") == "mora" and "mora" not in d.plugins,
        "the adapter is not built in and was not registered by a plugin",
        "add `axolotl.integrations.mora.MoraPlugin` to `plugins:`",
        decides_memory=True,
    ),
    Rule(
        "adapter",
        lambda d: d.get("adapter") == "mora" and "mora" in d.plugins,
        "adapter: mora requires a PEFT build with MoRA support (LoraConfig(use_mora=...)), and no release of peft has it",
        "use `adapter: lora`",
        decides_memory=True,
    ),
    Rule(
        "lora_dropout",
        lambda d: d.get("lora_target_parameters") and d.get("lora_dropout"),
        "lora_dropout must be 0 when lora_target_parameters is set",
        "set `lora_dropout: 0`",
        figures_with={"lora_dropout": 0.0},
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
        lambda d: is_lora(d) and d.get("flash_attn_fuse_mlp"),
        "fused modules are not supported with LoRA",
        "remove flash_attn_fuse_mlp",
    ),
    Rule(
        "use_onebitllms",
        lambda d: is_lora(d) and d.get("use_onebitllms"),
        "LoRA is not supported with use_onebitllms",
        "remove one of them",
        decides_memory=True,
    ),
    Rule(
        "lr_groups",
        lambda d: d.get("lr_groups") and d.get("loraplus_lr_ratio"),
        "lr_groups and loraplus_lr_ratio cannot be used together",
        "keep one of them",
    ),
    Rule(
        "load_in_8bit",
        lambda d: lora_kernels(d) and d.get("adapter") == "lora" and d.get("load_in_8bit"),
        "lora_mlp_kernel, lora_qkv_kernel and lora_o_kernel are not compatible with 8-bit LoRA",
        "remove the kernels or load_in_8bit",
    ),
    Rule(
        "trust_remote_code",
        lambda d: lora_kernels(d) and d.get("trust_remote_code"),
        "the LoRA kernels are not compatible with trust_remote_code (the figures are without them)",
        "set lora_mlp_kernel, lora_qkv_kernel and lora_o_kernel to false",
    ),
    Rule(
        "relora",
        lambda d: d.get("relora") and not d.get("jagged_restart_steps"),
        "jagged_restart_steps must be set to use ReLoRA",
        "add jagged_restart_steps",
        figures_with={"relora": False},
    ),
    Rule(
        "relora",
        lambda d: d.get("relora") and not d.get("adapter"),
        "ReLoRA needs an adapter",
        "set `adapter: lora`",
        decides_memory=True,
    ),
    Rule(
        "relora",
        lambda d: d.get("relora") and (d.get("fsdp") or d.get("fsdp_config") or d.get("deepspeed")),
        "FSDP and DeepSpeed are not supported with ReLoRA",
        "remove them",
    ),
    Rule(
        "fp32_norms",
        lambda d: d.get("fp32_norms") and not (d.get("fsdp_config") and str(d.get("fsdp_version")) == "2"),
        "fp32_norms requires FSDP2 (fsdp_config and fsdp_version: 2)",
        "remove it on one GPU",
        figures_with={"fp32_norms": False},
    ),
)
