"""Translates runs that others measured to a configuration and assumptions for `axmem_trace`.

Read by `compare_published.py`. A run of another trainer differs from axolotl in values that axolotl derives. Each
translation sets these values by assumptions, and names their source. A run that can't be described in this way is
refused with the reason. No number here was measured on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from published_case import DATASET, GIB, UNREADABLE, CannotExpress, Case, explain, loss_path, read_release
from published_fms import translate_fms_run
from published_notebook import translate_notebook_run

QUANTITIES = {
    "max_allocated": "allocated",
    "max_reserved": "reserved",
    "nvidia-smi": "device",
    "unknown": "reserved",
}
"""The figure of a report that is compared with each metric. If the measured figure is not known, reserved memory is the
most probable."""


def read_run(run: Mapping[str, Any]) -> Case:
    """A record of `runs.json` as a case.

    Raises:
        KeyError, TypeError, ValueError: the record has no id, or no figure that can be compared (see `read_record`).
    """
    source, metric = run["id"].split("-")[0], run.get("metric", "unknown")
    if metric not in QUANTITIES:
        raise CannotExpress(f"the metric {metric} is not estimated")
    extra = run.get("extra") or {}
    gigabytes = {
        "device": extra.get("nvidia_smi_gib"),
        "end": extra.get("allocated_end_gib"),
        QUANTITIES[metric]: run["measured_gib"],
    }
    measured = {key: float(value) * GIB for key, value in gigabytes.items() if value}
    if QUANTITIES[metric] not in measured or min(measured.values()) <= 0:
        raise CannotExpress("no figure was measured")
    settings = run.get("axolotl_like_config") or {}
    case: dict[str, Any] = {
        "id": run["id"],
        "source": source,
        "quality": str(run.get("quality", "?")),
        "metric": metric,
        "num_gpus": run.get("n_gpus") or 0,
        "measured": measured,
        "rows": settings.get("micro_batch_size") or 0,
        "gpu": _card(str(run.get("gpu", ""))),
    }
    try:
        translate = TRANSLATIONS.get(source)
        if run["n_gpus"] != 1 and source not in ON_MANY_GPUS:
            raise CannotExpress(f"{run['n_gpus']} GPUs: how this trainer divides a run is not translated")
        if translate is None:
            raise CannotExpress(OWN_MODEL_CODE.get(source, f"no translation for runs of {source}"))
        case.update(translate(run))
    except UNREADABLE as error:
        case["cannot"] = explain(error)
    return Case(**case)


def _card(name: str) -> str:
    """Our name of the card; empty if the run does not name it. Then no card is assumed to be full."""
    for known, pattern in (
        ("A100-80GB", r"A100.*80 ?GB"),
        ("A100-40GB", r"A100.*40 ?GB"),
        ("L40S", r"L40S"),
        ("A10G", r"A10G"),
        ("RTX 4090", r"4090"),
        ("H100", r"H100"),
    ):
        if re.search(pattern, name):
            return known
    return ""


OWN_MODEL_CODE = {
    "litgpt": "LitGPT trains its own model code, not transformers'",
    "torchtune": "torchtune trains its own model code, not transformers'",
    "torchtitan": "torchtitan trains its own model code, not transformers'",
    "ao": "torchao's figures are of torchtune, which trains its own model code",
    "llama": "llama-recipes: neither checkpointing nor the length of its rows is known",
    "unsloth": "Unsloth replaces the model's code and moves activations to the host",
    "qlora": "a figure in prose: length and batch are unknown",
    "accelerate": "a figure in prose: no settings are known",
    "llamafactory": "rows are as long as the samples, and those are unknown",
    "msswift": "two to four GPUs",
    "qwen1": "Qwen 1 is code of the model's own repository, not in transformers",
}


# -- PEFT's method comparison: a plain loop ----------------------------------------------------------------------------

LONGEST_OF_PEFT = 692
"""The number of tokens in a row of the longest batch. It is not published, so it is calculated from one run, LoRA of
rank 32 (20.744 GiB, in steps of 4 tokens). So this run is not a test of the estimate; all others are."""


def _peft(run: Mapping[str, Any]) -> dict[str, Any]:
    """`method_comparison/MetaMathQA/run.py`: there is no Trainer and no autocast, the key-value cache is on, and rows
    have the length of the longest one in the batch. `outputs` is a variable of the loop, so the logits are alive during
    backward. Samples are sorted by length within buckets of 20 batches, the longest first. The allocator's cache is
    emptied every ten steps, so it is empty before the longest batch. Without checkpointing, the embedding's output does
    not require a gradient."""
    settings = run["axolotl_like_config"]
    if settings["adapter"] != "lora":
        raise CannotExpress(f"adapter {settings['adapter']}")
    config: dict[str, Any] = {
        "base_model": settings["base_model"],
        "datasets": DATASET,
        "bf16": True,
        "val_set_size": 0,
        "micro_batch_size": settings["micro_batch_size"],
        "gradient_accumulation_steps": 1,
        "sequence_len": settings["sequence_len"],
        "gradient_checkpointing": False,
        "sdp_attention": True,
        "optimizer": "adamw_torch",
        "max_grad_norm": 1.0,
        "adapter": "lora",
        "lora_r": settings["lora_r"],
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "lora_target_modules": settings["lora_target_modules"],
        "peft_use_dora": settings["peft_use_dora"],
        "peft_use_rslora": settings["peft_use_rslora"],
        "gc_steps": 1,
    }
    assumptions = {
        "autocast": False,
        "adapter_dtype": "float32",
        "upcast_before": False,
        "attention_mask": True,
        "padded": True,
        "allocator": "default",
        "optimizer_implementation": "foreach",
        "lora_kernels": False,
        "loss_path": loss_path(read_release(run["versions"]["transformers"]), False),
        "use_cache": True,
        "row_tokens": LONGEST_OF_PEFT,
        "holds_outputs": True,
        "input_gradients": False,
    }
    return {"config": config, "assumptions": assumptions, "line": ""}


# -- runs of axolotl and of ms-swift -----------------------------------------------------------------------------------


def _axolotl(run: Mapping[str, Any]) -> dict[str, Any]:
    """The example's own YAML. The lengths of the samples are not known, so rows have the largest possible length."""
    config = {key: value for key, value in run["axolotl_like_config"].items() if not key.startswith("_")}
    if not config.get("base_model"):
        raise CannotExpress("the configuration is not published")
    return {"config": {"datasets": DATASET, **config}}


def _msswift24(run: Mapping[str, Any]) -> dict[str, Any]:
    """ms-swift's benchmark: HF Trainer; samples longer than `max_length` are dropped, so the longest row is near it."""
    settings = run["axolotl_like_config"]
    if "Yi" not in settings["base_model"]:
        raise CannotExpress("the model is code of its own repository, not in transformers")
    config: dict[str, Any] = {"datasets": DATASET, "bf16": True, "val_set_size": 0, "optimizer": "adamw_torch"}
    for key in """
        base_model sequence_len micro_batch_size gradient_accumulation_steps adapter lora_r lora_alpha lora_dropout
        gradient_checkpointing flash_attention
        """.split():
        if settings.get(key):
            config[key] = settings[key]
    config["lora_target_modules"] = ["q_proj", "k_proj", "v_proj"]
    assumptions = {
        "attention_mask": True,
        "allocator": "default",
        "optimizer_implementation": "foreach",
        "loss_path": "upcast_shifted_copy",
        "upcast_before": False,
        "lora_kernels": False,
        "loading": "before_4_50",
    }
    return {"config": config, "assumptions": assumptions, "line": f"{settings['base_model']} {config.get('adapter')}"}


ON_MANY_GPUS = ("fms",)
"""The sources whose runs on several GPUs are also translated."""
TRANSLATIONS = {
    "fms": translate_fms_run,
    "peft": _peft,
    "answerai": translate_notebook_run,
    "axolotl": _axolotl,
    "msswift24": _msswift24,
}


# -- runs that did not fit ---------------------------------------------------------------------------------------------

_TRANSFORMERS_OF_FILE = {"a100_80gb.csv": "4.48.1", "a100_80gb_liger.csv": "4.45.2"}
_LENGTH_OF_FILE = 4096


def read_out_of_memory(record: Mapping[str, Any]) -> Case:
    """The case of a record in `out_of_memory.json` (fms-acceleration): a run that must not fit on 80 GB."""
    framework, method = record["framework"], record["method"]
    quantised, gptq = "bnb" in framework or "gptq" in framework, "gptq" in framework
    adapter = None if method == "full" else "qlora" if "bnb" in framework else "lora"
    settings: dict[str, Any] = {
        "base_model": record["model"],
        "adapter": adapter,
        "load_in_4bit": "bnb" in framework,
        "gptq": gptq,
        "micro_batch_size": record["per_device_bs"],
        "sequence_len": _LENGTH_OF_FILE,
        "fp16": gptq,
        "model_load_dtype": "float16" if gptq else "bfloat16",
        "autocast": quantised or "liger" in record["file"],
    }
    if adapter:
        settings |= {
            "lora_r": 16,
            "lora_alpha": 16,
            "lora_dropout": 0.1,
            "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        }
        settings["lora_qkv_kernel"] = quantised and "foak" in framework
    run = {
        "id": f"fms-oom-{record['file'].removesuffix('.csv')}-L{record['line']}",
        "quality": "A",
        "metric": "nvidia-smi",
        "measured_gib": int(float(record["nvidia_smi_peak_mib"])) / 1024,
        "n_gpus": record["n_gpus"],
        "gpu": "NVIDIA A100 80GB",
        "framework": framework,
        "axolotl_like_config": settings,
        "versions": {"transformers": _TRANSFORMERS_OF_FILE[record["file"]]},
    }
    return read_run(run)
