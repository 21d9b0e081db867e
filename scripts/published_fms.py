"""fms-acceleration's runs (HF Trainer and TRL's packing, A100), translated for `axmem_trace`; see `published_runs.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from published_case import DATASET, CannotExpress, loss_path, read_release

FMS_FRAMEWORKS = (
    "none",
    "foak-fast-kernels",
    "foak-fast-kernels-liger",
    "baseline-peft-bnb",
    *(f"accelerated-peft-{kind}{kernels}" for kind in ("bnb", "autogptq") for kernels in ("", "-foak", "-foak-liger")),
)


def _fms_on_many(settings: Mapping[str, Any], framework: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The additional configuration and assumptions for FSDP1, as in `scripts/benchmarks/accelerate.yaml`.

    With the `foak` kernels, each rank has the full adapters of a quantised base, because the kernels can't run with
    sharded adapters (fms-acceleration-foak 0.7.4 `utils.py` `lora_adapters_switch_ddp_from_fsdp`). With FSDP the base
    is packed in words of the load dtype; TRL 0.13 then makes adapters in the base's dtype and prepares nothing
    (`SFTTrainer.__init__`, `is_sharded_qlora`).
    """
    if not settings.get("fsdp"):
        raise CannotExpress("several GPUs without FSDP")
    config = {
        "fsdp_version": 1,
        "fsdp_config": {"cpu_ram_efficient_loading": True, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
    }
    assumptions: dict[str, Any] = {
        "fsdp_prefetch": "pre",
        "fsdp_dtype": ("float16" if settings["fp16"] else "bfloat16") if settings["autocast"] else "stored",
    }
    if settings.get("gptq"):
        assumptions["gptq_weights"] = "parameters"
    assumptions |= {"checkpoints_units": True, "fsdp_loads_on_host": True}
    if "foak" in framework and (settings.get("load_in_4bit") or settings.get("gptq")):
        assumptions["fsdp_adapters"] = "ignored"
    if framework == "baseline-peft-bnb":
        assumptions |= {"kbit_preparation": False, "adapter_dtype": "base"}
    return config, assumptions


def _fms_added_tokens(base_model: str) -> int:
    """The number of tokens that fms-hf-tuning adds before training to a tokenizer that does not have them
    (`tuning/sft_trainer.py`): a padding token, and for Llama 3 a token for unknown words. PowerLM's tokenizer has both.
    The embedding then has 32,001 or 128,258 rows.

    The measured bytes show the same: with b rows, allocated at the end and at the peak miss the estimate by the same
    amount with 32,001 (`fms-base-L38`: 128.5 and 128.0 KiB; L40: 256.5 and 256.0; L80: 33.0 and 33.0), with 128,258
    (`fms-liger-L10`: 144.0 and 144.0) and with PowerLM's own 49,152 (`fms-granite-L10`: 2467.5 and 2468.0), not with one
    token more or less: at the peak each is 8 * 4096 * b bytes.
    """
    return 0 if "PowerLM" in base_model else 2 if "Llama-3" in base_model else 1


def translate_fms_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """`scripts/benchmarks/benchmark.py`: rows of exactly `sequence_len` tokens without a mask, fixed-length
    FlashAttention-2, reentrant checkpointing, `adamw_torch` with foreach, PyTorch's own allocator settings.

    `foak` kernels (fms-acceleration-foak 0.7.4): Unsloth's RMSNorm and rotary embedding keep and allocate what Liger's
    do; its cross-entropy works in place; its LoRA kernels for quantised q, k, v and o are older ones of Unsloth.
    `foak-liger` has Liger's fused linear cross-entropy instead. For GPT-BigCode the cross-entropy is all there is.

    The figures are sums of the differences that HF Trainer's memory tracker takes while it is made and while it trains
    (`trainer_utils.py` `TrainerMemoryTracker`). With `foak` on several GPUs, adapters of a quantised base are moved to the
    GPU between the two, whole and in fp32 (`get_callbacks_and_ready_for_train`), so the figures are without them.

    `baseline-peft-bnb` leaves the preparation to TRL 0.13 (`trainer/sft_trainer.py` `SFTTrainer.__init__`): peft's, in
    fp32, then `peft_module_casting_to_bf16` (`trainer/utils.py`), which leaves norms and adapters in fp32.
    """
    settings, framework = run["axolotl_like_config"], run["framework"].split()[-1]
    if framework not in FMS_FRAMEWORKS:
        raise CannotExpress(f"what {framework} of fms-acceleration does is not known here")
    old_bigcode, version = "gpt_bigcode" in settings["base_model"], read_release(run["versions"]["transformers"])
    config: dict[str, Any] = {
        "base_model": settings["base_model"],
        "datasets": DATASET,
        "bf16": not settings["fp16"],
        "fp16": settings["fp16"],
        "micro_batch_size": settings["micro_batch_size"],
        "gradient_accumulation_steps": 1,
        "sequence_len": settings["sequence_len"],
        "pad_to_sequence_len": True,
        "gradient_checkpointing": True,
        "flash_attention": True,
        "optimizer": "adamw_torch",
        "val_set_size": 0,
    }
    for key in ("adapter", "load_in_4bit", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
        if settings.get(key):
            config[key] = settings[key]
    if old_bigcode and config.get("adapter"):
        config["lora_target_modules"] = ["c_attn"]
    dtype = "float16" if settings["fp16"] else "bfloat16"
    assumptions = {
        "autocast": dtype if settings["autocast"] else False,
        "load_dtype": settings["model_load_dtype"],
        "attention_mask": False,
        "allocator": "default",
        "optimizer_implementation": "foreach",
        "upcast_before": False,
        "kbit_preparation": False,
        "lora_kernels": False,
        "loss_path": loss_path(version, old_bigcode),
        "loading": "before_4_50" if version < (4, 50) else "current",
        "use_cache": old_bigcode and version < (4, 50),
        "repeats_kv": "Mistral" in settings["base_model"] and version < (4, 48),
        "whole_slices": True,
        "added_tokens": _fms_added_tokens(settings["base_model"]),
    }
    if "Mixtral" in settings["base_model"] and version < (5, 0):
        assumptions["experts_layout"] = "linear"
    if "foak" in framework:
        assumptions["cross_entropy"] = "in_place"
        if not old_bigcode:
            config["plugins"] = ["axolotl.integrations.liger.LigerPlugin"]
            config |= {"liger_rms_norm": True, "liger_rope": True}
    if framework.endswith("-liger"):
        assumptions |= {"loss_path": "liger_fused_linear", "cross_entropy": "torch"}
    if settings.get("lora_qkv_kernel") or (settings.get("gptq") and "foak" in framework):
        assumptions |= {"lora_kernels": "qkv,o", "lora_kernels_of": "fms_acceleration"}
    if "autogptq" in framework:
        assumptions["gptq_kernel"] = "triton"
    if framework == "baseline-peft-bnb":
        assumptions |= {"kbit_preparation": True, "cast_back": False, "embedding_dtype": "bfloat16"}
    if run["n_gpus"] > 1:
        more, further = _fms_on_many(settings, framework)
        config |= more
        assumptions |= further
    name, release = settings["base_model"].split("/")[-1], run["versions"]["transformers"]
    line = f"{name} {framework} {config.get('adapter', 'full')} {release}" + f" x {run['n_gpus']}" * (run["n_gpus"] > 1)
    return {
        "config": config,
        "assumptions": assumptions,
        "line": line,
        "adapters_unmeasured": assumptions.get("fsdp_adapters") == "ignored",
    }
