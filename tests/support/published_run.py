"""A published run, as a record of `runs.json`."""

from __future__ import annotations

from typing import Any


def make_run(**changes: Any) -> dict[str, Any]:
    """A QLoRA of fms-acceleration on one GPU, with these fields changed; `settings` changes its configuration."""
    settings = {
        "base_model": "mistralai/Mistral-7B-v0.1",
        "adapter": "qlora",
        "load_in_4bit": True,
        "gptq": False,
        "micro_batch_size": 4,
        "sequence_len": 4096,
        "fp16": False,
        "model_load_dtype": "bfloat16",
        "autocast": True,
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "lora_target_modules": ["q_proj"],
        **changes.pop("settings", {}),
    }
    return {
        "id": "fms-base-L78",
        "framework": "HF Trainer config accelerated-peft-bnb",
        "quality": "A",
        "n_gpus": 1,
        "metric": "max_allocated",
        "measured_gib": 15.25,
        "gpu": "NVIDIA A100 80GB",
        "extra": {"allocated_end_gib": 4.0},
        "versions": {"transformers": "4.48.1"},
        "axolotl_like_config": settings,
        **changes,
    }
