"""Answer.AI's notebook (`fsdp_qlora/nbs/00-profile_lora_qlora.ipynb`): one forward and backward of a random Llama."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from published_case import DATASET, GIB, CannotExpress, Case

MODEL = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 32000,
    "head_dim": 128,
}
VARIANT = re.compile(
    r"(?P<method>full|LoRA|QLoRA)(?: r(?P<rank>\d+))?(?: (?P<targets>[a-z_,]+))?, "
    r"(?P<checkpointing>no GC|GC non-reentrant|GC reentrant)"
)
"""Such as `LoRA r8 q,v, GC non-reentrant`."""


def translate_notebook_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """The case of a record in `runs.json`: the peak of allocated memory in forward and backward."""
    settings = run["axolotl_like_config"]
    adapter = settings.get("adapter") or ""
    if not settings["gradient_checkpointing"]:
        use_reentrant = None
    else:
        use_reentrant = (settings.get("gradient_checkpointing_kwargs") or {}).get("use_reentrant", True)
    case = describe_pass(
        adapter=adapter,
        rank=settings.get("lora_r") or 0,
        targets=settings.get("lora_target_modules") or (),
        use_reentrant=use_reentrant,
        rows=settings["micro_batch_size"],
        tokens=settings["sequence_len"],
    )
    line = f"notebook {adapter or 'full'} {'not ' if use_reentrant is None else ''}checkpointed"
    return {**case, "measured": {"passes": run["measured_gib"] * GIB}, "line": line}


def read_probe(point: Mapping[str, Any]) -> Case:
    """The case of a record in `activation_probes.json`: allocated memory after load, forward and backward (1e9
    bytes)."""
    variant, tokens = point["variant"], point["seq"]
    names = {"load": "model", "after_forward": "after_forward", "after_backward": "after_backward"}
    gigabytes = point["allocated_gb_1e9"]
    common: dict[str, Any] = {
        "id": f"probe {variant} {tokens}",
        "source": "probes",
        "quality": "A",
        "metric": "allocated",
        "num_gpus": 1,
        "measured": {ours: gigabytes[theirs] * 1e9 for ours, theirs in names.items() if theirs in gigabytes},
        "rows": tokens,
        "line": f"probe {variant}",
    }
    parts = VARIANT.fullmatch(variant)
    if parts is None:
        return Case(**common, cannot=f"the notebook's variant {variant!r} is not known here")
    checkpointing = {"no GC": None, "GC non-reentrant": False, "GC reentrant": True}[parts["checkpointing"]]
    targets = [f"{name.removesuffix('_proj')}_proj" for name in (parts["targets"] or "").split(",") if name]
    case = describe_pass(
        adapter={"full": "", "LoRA": "lora", "QLoRA": "qlora"}[parts["method"]],
        rank=int(parts["rank"] or 0),
        targets=targets,
        use_reentrant=checkpointing,
        rows=point.get("batch", 1),
        tokens=tokens,
    )
    return Case(**common, **case)


def describe_pass(
    *, adapter: str, rank: int, targets: Any, use_reentrant: bool | None, rows: int, tokens: int
) -> dict[str, Any]:
    """`logits.float()` of transformers early in 2024, `logits.mean()` for a loss, no autocast, adapters in the base's
    bf16 (peft before 0.12), the logits' name bound until the end; bitsandbytes before 0.43.2, without double
    quantisation (0.876e9 bytes after load say so); PyTorch 2.1 (its bytes after forward say so).

    `use_reentrant` is None without checkpointing.
    """
    if adapter and not (rank and targets):
        raise CannotExpress("neither the adapter's rank nor its layers are known")
    checkpointing = use_reentrant is not None
    config: dict[str, Any] = {
        "base_model": "NousResearch/Llama-2-7b-hf",
        "overrides_of_model_config": MODEL,
        "datasets": DATASET,
        "bf16": True,
        "micro_batch_size": rows,
        "gradient_accumulation_steps": 1,
        "val_set_size": 0,
        "sequence_len": tokens,
        "pad_to_sequence_len": True,
        "gradient_checkpointing": checkpointing,
        "sdp_attention": True,
        "optimizer": "adamw_torch",
    }
    if checkpointing:
        config["gradient_checkpointing_kwargs"] = {"use_reentrant": use_reentrant}
    if adapter:
        config |= {
            "adapter": adapter,
            "lora_r": rank,
            "lora_alpha": 32,
            "lora_dropout": 0.1,
            "lora_target_modules": list(targets),
            "load_in_4bit": adapter == "qlora",
        }
    if adapter == "qlora":
        config["bnb_config_kwargs"] = {"bnb_4bit_use_double_quant": False}
    assumptions = {
        "autocast": False,
        "output_dtype": "float32",
        "loss_path": "none",
        "upcast_before": False,
        "kbit_preparation": False,
        "adapter_dtype": "base",
        "attention_mask": False,
        "allocator": "default",
        "lora_kernels": False,
        "holds_outputs": True,
        "use_cache": not checkpointing,
        "bnb_keeps_inputs": adapter == "qlora",
        "loading": "before_4_50",
        "mean_keeps_input": True,
        "input_gradients": False,
    }
    return {"config": config, "assumptions": assumptions}
