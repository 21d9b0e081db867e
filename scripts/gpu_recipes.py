"""Recipes for `measure_on_gpu.py --recipes`: runs that a GPU must confirm. Each takes less than a minute on an H100.

Base models are those of the bundled catalogue. Large ones are reduced to a few layers. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

WITHOUT_KERNELS = ("lora_kernels=false",)
"""axolotl's fused LoRA kernels can't be run here."""


class GpuRecipe(NamedTuple):
    """The settings in addition to `COMMON`, and the assumptions.

    Attributes:
        ranks: the number of ranks of PyTorch's `fake` process group (`FAKE_RANKS`), of which rank 0 runs; 0: one GPU.
        axolotl: the release whose rules apply; empty: the estimate's default.
    """

    keys: dict[str, Any]
    assumptions: tuple[str, ...] = ()
    ranks: int = 0
    axolotl: str = ""


COMMON: dict[str, Any] = {
    "base_model": "meta-llama/Llama-3.2-1B",
    "sequence_len": 2048,
    "micro_batch_size": 2,
    "bf16": True,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw_torch_fused",
    "learning_rate": 1e-4,
    "val_set_size": 0,
    "sdp_attention": True,
    "datasets": [{"path": "any", "type": "alpaca"}],
}
LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
QLORA: dict[str, Any] = {**LORA, "adapter": "qlora", "load_in_4bit": True}


PLAIN_HELPERS = ("loss_helpers=torch",)
"""Log-probabilities with TRL's PyTorch code: the Triton kernels of a trainer can't be run here."""


def _cut(layers: int, **fields: Any) -> dict[str, Any]:
    """Settings for only the first layers of a model."""
    return {"overrides_of_model_config": {"num_hidden_layers": layers, **fields}}


def _checkpointed(reentrant: bool) -> dict[str, Any]:
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}


SMALL: dict[str, Any] = {"sequence_len": 512, **_cut(2)}


def _fsdp(**options: Any) -> dict[str, Any]:
    """FSDP2 with the first layers of a model and short rows."""
    return {
        "sequence_len": 512,
        **_cut(4),
        "fsdp_version": 2,
        "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", **options},
    }


def _fsdp1(**options: Any) -> dict[str, Any]:
    return {**_fsdp(**options), "fsdp_version": 1}


ACCUMULATED: dict[str, Any] = {"gradient_accumulation_steps": 2}
RANKS: dict[str, GpuRecipe] = {
    "ranks-fsdp2-full": GpuRecipe(_fsdp(), (), 4),
    "ranks-fsdp2-full-checkpointed-accumulated": GpuRecipe({**_fsdp(), **_checkpointed(False), **ACCUMULATED}, (), 8),
    "ranks-fsdp2-full-not-resharded": GpuRecipe(_fsdp(reshard_after_forward=False), (), 4),
    "ranks-fsdp2-full-own-checkpointing": GpuRecipe(
        {**_fsdp(activation_checkpointing=True), "base_model": "Qwen/Qwen3-0.6B", "optimizer": "adamw_torch"}, (), 4),
    "ranks-fsdp2-hsdp": GpuRecipe({**_fsdp(), "dp_replicate_size": 2, "dp_shard_size": 2}, (), 4),
    "ranks-fsdp2-lora": GpuRecipe({**_fsdp(), **LORA}, WITHOUT_KERNELS, 4),
    "ranks-fsdp2-lora-checkpointed": GpuRecipe({**_fsdp(), **LORA, **_checkpointed(False), **ACCUMULATED},
                                               WITHOUT_KERNELS, 3),
    "ranks-fsdp2-lora-own-units": GpuRecipe({**_fsdp(), **LORA}, WITHOUT_KERNELS, 4, "0.19.0"),
    "ranks-fsdp2-qlora": GpuRecipe({**_fsdp(), **QLORA}, WITHOUT_KERNELS, 4),
    "ranks-fsdp2-qlora-checkpointed": GpuRecipe({**_fsdp(), **QLORA, **_checkpointed(False)}, WITHOUT_KERNELS, 2),
    "ranks-fsdp2-offloaded": GpuRecipe(_fsdp(offload_params=True), (), 4),
    "ranks-fsdp2-offloaded-loaded-on-host": GpuRecipe(
        {**_fsdp(offload_params=True, cpu_ram_efficient_loading=True), **_checkpointed(False), **ACCUMULATED,
         "optimizer": "adamw_torch"}, (), 4),
    "ranks-fsdp2-loaded-on-host": GpuRecipe(_fsdp(cpu_ram_efficient_loading=True), (), 2),
    "ranks-fsdp2-lora-offloaded": GpuRecipe({**_fsdp(offload_params=True), **LORA, **_checkpointed(False)},
                                            WITHOUT_KERNELS, 4),
    "ranks-fsdp1-full": GpuRecipe({**_fsdp1(), **ACCUMULATED}, (), 4, "0.19.0"),
    "ranks-fsdp1-lora-checkpointed": GpuRecipe({**_fsdp1(), **LORA, **_checkpointed(True)}, WITHOUT_KERNELS, 2,
                                               "0.19.0"),
    "ranks-ddp-full": GpuRecipe({"sequence_len": 512, **_cut(2), **ACCUMULATED}, (), 2),
    "ranks-ddp-lora-checkpointed": GpuRecipe({"sequence_len": 512, **_cut(4), **LORA, **_checkpointed(False)},
                                             WITHOUT_KERNELS, 8),
}  # fmt: skip
"""One rank of several, on one GPU: the group's collectives do nothing."""
RECIPES: dict[str, GpuRecipe] = {
    "full-fused": GpuRecipe({}),
    "full-foreach-accumulated": GpuRecipe({"optimizer": "adamw_torch", "gradient_accumulation_steps": 3}),
    "full-bnb8-checkpointed": GpuRecipe({"optimizer": "adamw_bnb_8bit", **_checkpointed(False)}),
    "full-paged-reentrant": GpuRecipe({"optimizer": "paged_adamw_8bit", **_checkpointed(True)}),
    "full-eager-sgd": GpuRecipe({"sdp_attention": False, "attn_implementation": "eager", "optimizer": "sgd",
                                 "sequence_len": 1024}),
    "full-packed": GpuRecipe({"sample_packing": True, "micro_batch_size": 1, "sdp_attention": False,
                              "attn_implementation": "eager", "sequence_len": 1024}),
    "full-evaluated": GpuRecipe({"val_set_size": 0.1, "eval_strategy": "steps", "eval_steps": 2, "eval_batch_size": 4,
                                 **_checkpointed(True)}),
    "full-not-expandable": GpuRecipe({"torch_empty_cache_steps": 1},
                                     ("allocator=expandable_segments:False,roundup_power2_divisions:16",)),
    "full-one-row": GpuRecipe({"micro_batch_size": 1, "sequence_len": 1024, **_cut(4)}),
    "lora": GpuRecipe({**LORA, "lora_dropout": 0.05}, WITHOUT_KERNELS),
    "lora-one-row": GpuRecipe({**LORA, "base_model": "Qwen/Qwen2.5-0.5B", "micro_batch_size": 1,
                               "optimizer": "adamw_torch"}, WITHOUT_KERNELS),
    "lora-fp16-scaler": GpuRecipe({**LORA, "bf16": False, "fp16": True, "optimizer": "adamw_torch"}, WITHOUT_KERNELS),
    "lora-saved-modules": GpuRecipe(
        {**LORA, "base_model": "TinyLlama/TinyLlama_v1.1", "lora_modules_to_save": ["embed_tokens", "lm_head"]},
        WITHOUT_KERNELS),
    "dora-rank-64": GpuRecipe({**LORA, "peft_use_dora": True, "lora_r": 64}, WITHOUT_KERNELS),
    "qlora-8b": GpuRecipe({**QLORA, "base_model": "NousResearch/Meta-Llama-3.1-8B", **_checkpointed(True)},
                          WITHOUT_KERNELS),
    "qlora-paged": GpuRecipe({**QLORA, "optimizer": "paged_adamw_32bit", **_checkpointed(False)}, WITHOUT_KERNELS),
    "int8-lora": GpuRecipe({**LORA, "load_in_8bit": True, **_checkpointed(False)}, WITHOUT_KERNELS),
    "gemma2": GpuRecipe({"base_model": "google/gemma-2-2b", "sdp_attention": False, "attn_implementation": "eager",
                         "sequence_len": 1024, **_cut(6)}),
    "gemma3": GpuRecipe({"base_model": "google/gemma-3-1b-pt", **_checkpointed(False)}),
    "qwen3": GpuRecipe({"base_model": "Qwen/Qwen3-0.6B", "micro_batch_size": 4}),
    "moe": GpuRecipe({"base_model": "Qwen/Qwen3-30B-A3B", **_cut(3), **_checkpointed(False)}),
    "dpo": GpuRecipe({"rl": "dpo", **SMALL}, PLAIN_HELPERS),
    "orpo": GpuRecipe({"rl": "orpo", **SMALL}, PLAIN_HELPERS),
    "simpo": GpuRecipe({"rl": "simpo", "simpo_gamma": 0.5, **SMALL}, PLAIN_HELPERS),
    "reward": GpuRecipe({"reward_model": True, **SMALL}, PLAIN_HELPERS),
    **RANKS,
}  # fmt: skip


def write_recipe(name: str, directory: Path) -> Path:
    """One of `RECIPES` as a configuration file in `directory`."""
    path = directory / f"{name}.yml"
    path.write_text(yaml.safe_dump({**COMMON, **RECIPES[name].keys}, sort_keys=False), encoding="utf-8")
    return path
