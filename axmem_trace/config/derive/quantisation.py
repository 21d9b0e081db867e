"""How the base weights are stored. Source: axolotl `loaders/model.py` `_set_quantization_config` and
`_prepare_model_for_quantization`; transformers `quantizers/auto.py` `merge_quantization_configs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from axmem_trace.config.derive.deepspeed import deepspeed_stage
from axmem_trace.config.derive.parallelism import uses_fsdp
from axmem_trace.config.derive.task import is_moe
from axmem_trace.config.document.draft import Draft
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import BaseModel, Precision, Quantisation

FP32_STORAGE_TYPES = ("jamba", "qwen2_moe", "nemotron_h")
"""axolotl stores their nf4 weights as fp32 words, except under DeepSpeed and FSDP."""
OWN_CONFIG_METHODS = ("gptq", "awq", "bitsandbytes")
"""Quantisation methods of a checkpoint for which axolotl keeps the checkpoint's configuration and sets none of its own."""
_METHODS: dict[str, Literal["gptq", "awq", "mxfp4", "fp8"]] = {
    "gptq": "gptq",
    "awq": "awq",
    "mxfp4": "mxfp4",
    "fp8": "fp8",
}
_CLASSES = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config", "bitsandbytes": "BitsAndBytesConfig"}


def derive_quantisation(draft: Draft, base: BaseModel, precision: Precision) -> Quantisation:
    """`Quantisation` from the keys and from the checkpoint's own `quantization_config`."""
    given = base.config.get("quantization_config")
    own: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    own_method = str(own.get("quant_method") or _guess_method(own))
    adapter = draft.get("adapter")
    if draft.get("model_quantization_config"):
        return _model_quantization_config(draft, own_method)
    if own_method in OWN_CONFIG_METHODS:
        return _of_checkpoint(draft, own, own_method, base, precision)
    if adapter == "qlora" and draft.get("load_in_4bit"):
        _refuse_conflict(draft, own_method, "load_in_4bit")
        return _bnb_4bit(draft, base, precision)
    if adapter == "lora" and draft.get("load_in_8bit"):
        _refuse_conflict(draft, own_method, "load_in_8bit")
        return _bnb_8bit(draft, base)
    if own_method:
        return _of_checkpoint(draft, own, own_method, base, precision)
    if _kbit_preparation(draft, base):
        return Quantisation(kbit_preparation=True)
    return Quantisation()


def _guess_method(own: Mapping[str, Any]) -> str:
    if own.get("load_in_4bit") or own.get("load_in_8bit"):
        return "bitsandbytes"
    return "unknown" if own else ""


def _model_quantization_config(draft: Draft, own_method: str) -> Quantisation:
    name = draft.get("model_quantization_config")
    details = draft.sub("model_quantization_config_kwargs")
    draft.reason("quantisation.method", name, "`model_quantization_config`", key="model_quantization_config")
    if own_method and _CLASSES.get(own_method, own_method) != name:
        raise draft.error(
            f"the base model is quantised with {own_method}; transformers refuses to load it as {name}",
            "model_quantization_config",
            remedy="remove model_quantization_config, or use an unquantised base model",
        )
    method: Literal["mxfp4", "fp8"] = "mxfp4" if name == "Mxfp4Config" else "fp8"
    return Quantisation(
        method=method, details=details, guard_relaxed=_relaxes_guard(draft), hub_kernels=_uses_hub(draft)
    )


def _relaxes_guard(draft: Draft) -> bool:
    """True with ScatterMoE or SonicMoE and an adapter: axolotl `integrations/kernels/plugin.py` `pre_model_load`,
    `quant_training_guard.py`."""
    backend = str(draft.get("expert_backend") or "").lower()
    named = draft.get("use_scattermoe") or draft.get("use_sonicmoe") or backend in ("scattermoe", "sonicmoe")
    return bool("kernels" in draft.plugins and named and draft.get("adapter"))


def _uses_hub(draft: Draft) -> bool:
    """`use_kernels`, which the kernels plugin switches on if it is not given (`args.py` `check_use_kernels`)."""
    given = draft.get("use_kernels")
    return bool(given) if given is not None else "kernels" in draft.plugins


def _refuse_conflict(draft: Draft, own_method: str, key: str) -> None:
    """transformers: "The model is quantized with X but you are passing a BitsAndBytesConfig config"."""
    if own_method and own_method != "bitsandbytes":
        raise draft.error(
            f"the base model is already quantised ({own_method}); transformers refuses to load it with bitsandbytes",
            key,
            remedy=f"remove {key}, or use an unquantised copy of the base model (often `unsloth/...-BF16`)",
        )


def _of_checkpoint(
    draft: Draft, own: Mapping[str, Any], own_method: str, base: BaseModel, precision: Precision
) -> Quantisation:
    text = f"the base model's own quantization_config ({own_method})"
    draft.reason("quantisation.method", own_method, text, origin="derived")
    kbit = _kbit_preparation(draft, base)
    if own_method != "bitsandbytes":
        method: Literal["gptq", "awq", "mxfp4", "fp8", "checkpoint"] = _METHODS.get(own_method, "checkpoint")
        return Quantisation(
            method=method,
            details=dict(own),
            kbit_preparation=kbit,
            guard_relaxed=_relaxes_guard(draft),
            hub_kernels=_uses_hub(draft),
        )
    if own.get("load_in_8bit"):
        return Quantisation(
            method="bnb_8bit",
            skip_modules=tuple(own.get("llm_int8_skip_modules") or ()),
            int8_threshold=float(own.get("llm_int8_threshold") or 6.0),
            kbit_preparation=kbit,
            details=dict(own),
        )
    return Quantisation(
        method="bnb_4bit",
        quant_type="fp4" if own.get("bnb_4bit_quant_type", "fp4") == "fp4" else "nf4",
        double_quant=bool(own.get("bnb_4bit_use_double_quant")),
        storage_dtype=_dtype_name(own.get("bnb_4bit_quant_storage"), "uint8"),
        compute_dtype=_dtype_name(own.get("bnb_4bit_compute_dtype"), "float32"),
        skip_modules=tuple(own.get("llm_int8_skip_modules") or ()),
        kbit_preparation=kbit,
        quantise_moe_experts=bool(draft.get("quantize_moe_experts")),
        double_quant_experts=_double_quant_experts(draft),
        details=dict(own),
    )


def _bnb_4bit(draft: Draft, base: BaseModel, precision: Precision) -> Quantisation:
    """nf4 with double quantisation, stored as bf16 words; `bnb_config_kwargs` overrides each of these."""
    given = draft.sub("bnb_config_kwargs")
    shards = uses_fsdp(draft) or draft.get("deepspeed")
    storage = "float32" if base.model_type in FP32_STORAGE_TYPES and not shards else "bfloat16"
    skip = ("out_proj",) if base.model_type == "falcon_h1" else ()
    quant_type = str(given.get("bnb_4bit_quant_type", "nf4"))
    if quant_type not in ("nf4", "fp4"):
        raise draft.error(
            "bitsandbytes has no such 4-bit type", "bnb_config_kwargs.bnb_4bit_quant_type", accepted="nf4 or fp4"
        )
    draft.reason("quantisation.method", "bnb_4bit", "`adapter: qlora` with `load_in_4bit: true`", key="load_in_4bit")
    if storage == "float32":
        text = f"axolotl stores {base.model_type}'s 4-bit weights as fp32 words"
        draft.reason("quantisation.storage_dtype", storage, text, origin="derived")
    if given.get("load_in_8bit"):
        raise draft.error("load_in_8bit in bnb_config_kwargs contradicts qlora", "bnb_config_kwargs")
    return Quantisation(
        method="bnb_4bit",
        quant_type="fp4" if quant_type == "fp4" else "nf4",
        double_quant=bool(given.get("bnb_4bit_use_double_quant", True)),
        storage_dtype=_checked_dtype(draft, given, "bnb_4bit_quant_storage", storage),
        compute_dtype=_checked_dtype(draft, given, "bnb_4bit_compute_dtype", precision.load_dtype),
        skip_modules=tuple(_texts(draft, given.get("llm_int8_skip_modules"), skip)),
        int8_threshold=_number(draft, given.get("llm_int8_threshold", 6.0)),
        kbit_preparation=_kbit_preparation(draft, base),
        quantise_moe_experts=bool(draft.get("quantize_moe_experts")),
        double_quant_experts=_double_quant_experts(draft),
        details=given,
    )


def _bnb_8bit(draft: Draft, base: BaseModel) -> Quantisation:
    skip: tuple[str, ...] = {"jamba": ("mamba",), "falcon_h1": ("out_proj",)}.get(base.model_type, ())
    draft.reason("quantisation.method", "bnb_8bit", "`adapter: lora` with `load_in_8bit: true`", key="load_in_8bit")
    quantises_experts = bool(draft.get("quantize_moe_experts"))
    return Quantisation(
        method="bnb_8bit",
        skip_modules=skip,
        kbit_preparation=_kbit_preparation(draft, base),
        quantise_moe_experts=quantises_experts,
        double_quant_experts=_double_quant_experts(draft),
        int8_experts_stay_unpacked=quantises_experts and draft.release.behaviour.int8_experts_stay_unpacked,
    )


def _double_quant_experts(draft: Draft) -> bool:
    """Until 0.20.0 axolotl reads the key from a block in which the schema drops it, so the result is always true."""
    asked = draft.sub("bnb_config_kwargs").get("bnb_4bit_use_double_quant", True)
    return bool(asked) or not draft.release.behaviour.experts_obey_double_quant


def _kbit_preparation(draft: Draft, base: BaseModel) -> bool:
    """Whether peft's `prepare_model_for_kbit_training` runs, and the reason if it is a special case."""
    adapter = draft.get("adapter")
    if adapter not in ("lora", "qlora") or not (draft.get("load_in_8bit") or draft.get("load_in_4bit")):
        return False
    why = ""
    loftq = draft.sub("peft").get("loftq_config")
    if base.model_type == "qwen" and adapter == "lora":
        why = "axolotl skips it for the first Qwen with LoRA"
    elif adapter == "lora" and isinstance(loftq, Mapping) and loftq.get("loftq_bits", 4):
        why = "axolotl skips it with LoftQ"
    elif uses_fsdp(draft) and (adapter == "qlora" or draft.sub("fsdp_config").get("cpu_ram_efficient_loading")):
        why = "axolotl skips it under FSDP"
    elif deepspeed_stage(draft) == 3:
        why = "axolotl skips it under ZeRO-3"
    elif draft.get("quantize_moe_experts") and is_moe(base):
        why = "axolotl skips it with quantised experts"
    text = why or "peft prepares a quantised base for training: what is not quantised becomes fp32"
    draft.reason("quantisation.kbit_preparation", not why, text, origin="derived")
    return not why


def _dtype_name(value: object, default: str) -> str:
    return str(value).removeprefix("torch.") if value else default


def _checked_dtype(draft: Draft, given: Mapping[str, Any], key: str, default: str) -> str:
    name = _dtype_name(given.get(key), default)
    accepted = ("bfloat16", "float16", "float32", "uint8", "int8", "float64")
    if name not in accepted:
        raise draft.error("no such dtype", f"bnb_config_kwargs.{key}", accepted=", ".join(accepted))
    return name


def _texts(draft: Draft, value: object, default: tuple[str, ...]) -> tuple[str, ...]:
    if value is None:
        return default
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise draft.error(
        "the value has the wrong type", "bnb_config_kwargs.llm_int8_skip_modules", accepted="a list of module names"
    )


def _number(draft: Draft, value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        key = "bnb_config_kwargs.llm_int8_threshold"
        error: ConfigError = draft.error("the value has the wrong type", key, accepted="a number")
        raise error from None
