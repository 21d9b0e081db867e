"""Choose the quantizer from the recipe and the checkpoint's own `quantization_config`, as transformers does.

Source: transformers `quantizers/auto.py` `get_hf_quantizer`, `merge_quantization_configs`; axolotl `loaders/model.py`
`_set_quantization_config` (a checkpoint's own gptq, awq or bitsandbytes configuration is used before bitsandbytes keys).
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.models.quantisation.bnb import make_bnb_quantizer
from axmem_trace.models.quantisation.low_float import Fp8Quantizer, Mxfp4Quantizer
from axmem_trace.models.quantisation.packed_linear import PackedFormat
from axmem_trace.models.quantisation.quantizers import NoQuantizer, PackedQuantizer, Quantizer, TransformersQuantizer
from axmem_trace.models.skeleton.model_config import text_part
from axmem_trace.notes import Note, Notes, RefusalNote
from axmem_trace.recipe.recipe import Recipe

FP8_CAPABILITY = (8, 9)
"""On older cards transformers turns fp8 weights into bf16 (`quantizer_finegrained_fp8.py` `validate_environment`)."""
FP8_REFUSAL = (
    "transformers refuses to train FP8 weights (axolotl's kernels plugin allows it with adapters, and keeps one byte a "
    "weight)"
)
"""transformers `quantizer_finegrained_fp8.py` `is_trainable`, `trainer_utils.py` `validate_quantization_for_training`;
axolotl `integrations/kernels/quant_training_guard.py`."""
_BNB_METHODS = ("bnb_4bit", "bnb_8bit")
_SAYS_CLASS = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}


def choose_quantizer(recipe: Recipe, config: Any, notes: Notes) -> Quantizer:
    """The quantizer for this recipe. If none is used, `quantization_config` is removed from `config`.

    Raises:
        ConfigError: the checkpoint can't be loaded with `gptq: true`, or with this `model_quantization_config`.
    """
    requested = recipe.quantisation.method
    own = _own_config(config)
    if own is None:
        return _without_own(recipe, requested, notes)
    method = str(own.get("quant_method", "bitsandbytes" if own.get("load_in_4bit") else "")).lower()
    if requested in _BNB_METHODS and method not in ("bitsandbytes", "gptq", "awq"):
        note_bf16_copy(recipe, method, notes, "transformers refuses to quantise it again with bitsandbytes")
        _drop_own(config)
        return TransformersQuantizer(make_bnb_quantizer(recipe.quantisation))
    if requested in _SAYS_CLASS and method != requested:
        raise ConfigError(
            problem=f"the base model is quantised with {method!r}, and transformers refuses another configuration class",
            key="model_quantization_config",
            value=_SAYS_CLASS[requested],
            remedy="remove model_quantization_config, or name a base model that is not quantised",
        )
    quantizer = _with_own(recipe, config, own, method, notes)
    if isinstance(quantizer, NoQuantizer):
        _drop_own(config)
    return quantizer


def _own_config(config: Any) -> dict[str, Any] | None:
    own = getattr(config, "quantization_config", None)
    if own is None and hasattr(config, "get_text_config"):
        own = getattr(text_part(config), "quantization_config", None)
    if own is None:
        return None
    return dict(own) if isinstance(own, dict) else dict(own.to_dict())


def _drop_own(config: Any) -> None:
    for part in (config, text_part(config)):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config


def _without_own(recipe: Recipe, requested: str, notes: Notes) -> Quantizer:
    if requested in _BNB_METHODS:
        return TransformersQuantizer(make_bnb_quantizer(recipe.quantisation))
    if requested == "fp8" and not recipe.quantisation.details.get("dequantize"):
        note_bf16_copy(recipe, requested, notes, FP8_REFUSAL)
    if requested == "gptq" or requested == "awq":
        raise ConfigError(
            problem=f"{recipe.model.base.name} has no {requested.upper()} `quantization_config`",
            key=requested,
            remedy=f"name a base model that is quantised with {requested.upper()}, or remove the key",
        )
    return NoQuantizer()


def _with_own(recipe: Recipe, config: Any, own: dict[str, Any], method: str, notes: Notes) -> Quantizer:
    if method == "bitsandbytes":
        return _pre_quantised_bnb(recipe, own, notes)
    if method in ("gptq", "awq"):
        return _packed(recipe, own, method, notes)
    if method in ("fp8", "mxfp4"):
        return _low_float(recipe, own, method, notes)
    return _other(recipe, own, method, notes)


def _pre_quantised_bnb(recipe: Recipe, own: dict[str, Any], notes: Notes) -> Quantizer:
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    if not _is_trainable(recipe, "bitsandbytes", notes):
        return NoQuantizer()
    if own.get("load_in_4bit"):
        text = (
            f"the weights of the 4-bit checkpoint are assumed to be unpacked to {recipe.precision.load_dtype} in backward. "
            "In the run the checkpoint's quantisation state decides, which is not in its configuration"
        )
        notes.append(Note(kind="assumed", key="base_model", text=text))
    quantization_config = BitsAndBytesConfig.from_dict(own)
    return TransformersQuantizer(AutoHfQuantizer.from_config(quantization_config, pre_quantized=True))


_KERNELS_OF_PACKED = {
    "torch": "gptqmodel chooses its kernel on the GPU. The figures are with its torch kernel, not compiled: it unpacks each "
    "weight through one-byte integers, and backward keeps the unpacked weight",
    "triton": "AutoGPTQ's Triton kernel is assumed, which unpacks each weight again for backward",
}


def _packed(recipe: Recipe, own: dict[str, Any], method: str, notes: Notes) -> Quantizer:
    if not _is_trainable(recipe, method, notes):
        return NoQuantizer()
    bits, group_size = (
        int(own.get("bits", own.get("w_bit", 4))),
        int(own.get("group_size", own.get("q_group_size", 128))),
    )
    if bits not in (2, 3, 4, 8):
        raise ConfigError(
            problem=f"gptqmodel has no {method.upper()} format with {bits} bits",
            key="base_model",
            accepted="2, 3, 4 or 8 bits",
            remedy="check `bits` in the base model's quantization_config",
        )
    kernel = recipe.quantisation.gptq_kernel if method == "gptq" else "torch"
    text = (
        f"{method.upper()} weights are stored as in gptqmodel ({bits} bits in int32 words, fp16 scales); "
        + _KERNELS_OF_PACKED[kernel]
    )
    notes.append(Note(kind="ruled", key="base_model", text=text))
    if method == "gptq":
        text = (
            "axolotl (0.19 to 0.21) pins optimum 1.16.2, but transformers 5 loads GPTQ only with optimum 1.24 or newer (and "
            "gptqmodel 1.4.3): install these, or the run fails while it loads the model"
        )
        notes.append(Note(kind="warning", key="gptq", text=text))
    if own.get("dynamic"):
        text = "per-module overrides (`dynamic`) of the checkpoint's GPTQ configuration are not applied"
        notes.append(Note(kind="not_modelled", key="base_model", text=text, direction="either"))
    dtype = None
    if method == "gptq" and recipe.quantisation.gptq_weights == "parameters":
        dtype = getattr(torch, recipe.precision.load_dtype)
    packed = PackedFormat("gptq" if method == "gptq" else "awq", bits, group_size, kernel, dtype)
    return PackedQuantizer(method, packed, list(own.get("modules_to_not_convert") or []))


def _low_float(recipe: Recipe, own: dict[str, Any], method: str, notes: Notes) -> Quantizer:
    details = {**own, **recipe.quantisation.details} if recipe.quantisation.method == method else own
    if details.get("dequantize"):
        return NoQuantizer()
    capability = recipe.gpu.compute_capability
    if method == "fp8" and capability < FP8_CAPABILITY:
        text = (
            f"fp8 weights become {recipe.precision.load_dtype}: the GPU's compute capability {capability[0]}."
            f"{capability[1]} is below 8.9, so transformers dequantises them (name the card with --gpu)"
        )
        notes.append(Note(kind="assumed", key="base_model", text=text))
        return NoQuantizer()
    if recipe.quantisation.guard_relaxed:
        return _kept_low_float(recipe, own, method, notes)
    why = FP8_REFUSAL if method == "fp8" else "transformers refuses to train MXFP4 weights"
    note_bf16_copy(recipe, method, notes, why)
    return NoQuantizer()


def _kept_low_float(recipe: Recipe, own: dict[str, Any], method: str, notes: Notes) -> Quantizer:
    """The quantizer, and a note, for weights that axolotl's kernels plugin allows under an adapter."""
    if method == "fp8":
        text = (
            "fp8 weights stay packed (axolotl's kernels plugin switches transformers' refusal off for adapters): one "
        )
        text += (
            "byte each, and an fp32 scale for each block. transformers before 5.24 has no backward for their matmul; "
        )
        text += "the figures are with that of 5.24, which uses the unpacked weight"
        notes.append(Note(kind="ruled", key="base_model", text=text))
        return Fp8Quantizer(own)
    if recipe.quantisation.hub_kernels:
        dtype = recipe.precision.load_dtype
        text = (
            f"MXFP4 weights become {dtype}, even with `dequantize: false`: axolotl passes `use_kernels: true`, so that "
        )
        text += "transformers dequantises them on a GPU (quantizer_mxfp4.py, `_process_model_before_weight_loading`, "
        text += "5.16.1 to 5.24.0). `use_kernels: false` keeps the experts packed, 17 bytes for 32 weights"
        notes.append(Note(kind="warning", key="use_kernels", text=text))
        return NoQuantizer()
    text = "MXFP4 experts stay packed and run OpenAI's Triton kernels, which keep nothing for backward and have none: "
    text += "no gradient passes through the experts. Their temporary memory is assumed from the shapes of their outputs"
    notes.append(Note(kind="assumed", key="base_model", text=text))
    return Mxfp4Quantizer()


def _other(recipe: Recipe, own: dict[str, Any], method: str, notes: Notes) -> Quantizer:
    """bitnet uses transformers' own quantizer. Models with other methods are built unquantised, with a note."""
    if method == "bitnet" and _is_online_bitnet(own):
        from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

        quantization_config = AutoQuantizationConfig.from_dict(own)
        return TransformersQuantizer(AutoHfQuantizer.from_config(quantization_config, pre_quantized=True))
    text = (
        f"the checkpoint is quantised with {method or own.get('quant_algo', 'an unnamed method')!r}, whose layout is not "
        f"modelled: its weights are counted unquantised in {recipe.precision.load_dtype}, which is more than in the run"
    )
    notes.append(Note(kind="not_modelled", key="base_model", text=text, direction="less"))
    return NoQuantizer()


def _is_online_bitnet(own: dict[str, Any]) -> bool:
    return own.get("linear_class") == "autobitlinear" and own.get("quantization_mode") == "online"


def _is_trainable(recipe: Recipe, method: str, notes: Notes) -> bool:
    """True if there is an adapter: without one, a quantised base can't train (transformers `trainer_utils.py`)."""
    if recipe.adapter.kind != "none":
        return True
    note_bf16_copy(
        recipe, method, notes, "transformers' Trainer refuses to fine-tune quantised weights without an adapter"
    )
    return False


def note_bf16_copy(recipe: Recipe, method: str, notes: Notes, why: str) -> None:
    """Report that the configured run would fail, and that the figures are those of an unquantised copy."""
    text = (
        f"the run fails: {recipe.model.base.name} is quantised with {method!r} and {why} (the figures are those of an "
        f"unquantised copy loaded in {recipe.precision.load_dtype})"
    )
    notes.append(RefusalNote(key="base_model", text=text, remedy="use an unquantised copy of the base model"))
