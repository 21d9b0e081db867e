"""Dtypes of loading and of the step. Source: axolotl `utils/config/__init__.py` `resolve_dtype`,
`core/builders/base.py` `_configure_precision_settings`, `loaders/model.py` `_configure_embedding_dtypes`; accelerate
`Accelerator.prepare_model`."""

from __future__ import annotations

from axmem_trace.config.axolotl.embeddings import LLAMA_NAMES, embedding_names
from axmem_trace.config.derive.parallelism import uses_fsdp
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.parallel import Engine
from axmem_trace.recipe.recipe import BaseModel, Dtype, Gpu, Precision

ATTENTION_WITHOUT_DTYPE_CAST = ("eager", "sdpa")
"""`ATTN_IMPLS_WITHOUT_DTYPE_CAST` of axolotl's enums.py. With any other kernel, norms and embeddings are cast back."""
BF16_CAPABILITY = (8, 0)
"""Ampere: the first cards that compute in bfloat16."""


def derive_precision(draft: Draft, gpu: Gpu, base: BaseModel, engine: Engine = "none") -> Precision:
    """`Precision` from the keys, the target GPU (never this machine's) and the engine that distributes the run."""
    bf16, fp16 = _resolve_half(draft, gpu)
    load_dtype = _load_dtype(draft, bf16, fp16)
    autocast, autocast_dtype = _autocast(draft, bf16, fp16)
    if draft.get("fp8"):  # accelerate's `fp8` is bf16 autocast and no gradient scaler (`accelerator.py`)
        autocast, autocast_dtype = True, "bfloat16"
    if autocast and (who := _in_place_of_autocast(draft, engine)):
        draft.reason("precision.autocast", "off", f"{who}, without autocast", origin="derived")
        autocast = False
    cast_back, why = _cast_back(draft)
    embeddings = _upcasts_embeddings(draft, cast_back)
    # with ZeRO-3 only empty placeholders are cast; the parts keep their dtype
    divided = engine == "zero3" and not (draft.get("load_in_4bit") or draft.get("load_in_8bit"))
    upcast = not divided and (
        not uses_fsdp(draft) or (embeddings and not draft.release.behaviour.upcasts_embeddings_always)
    )
    if upcast:
        what = "norms, `*.gate` modules and embeddings" if embeddings else "norms and `*.gate` modules"
        draft.reason("precision.upcast_before", True, f"axolotl casts {what} to fp32")
        draft.reason("precision.cast_back", cast_back, why)
    return Precision(
        load_dtype=load_dtype,
        autocast=autocast,
        autocast_dtype=autocast_dtype,
        grad_scaler=autocast_dtype == "float16" and (autocast or engine in ("fsdp2", "tensor")),
        output_dtype="float32" if autocast else "same",
        upcast_before=upcast,
        upcast_embeddings=embeddings,
        kbit_skips=_kbit_skips(draft, base, cast_back),
        cast_back=cast_back,
        fp32_norms=bool(draft.get("fp32_norms")),
        fp32_norm_classes=tuple(draft.get("fp32_norm_classes") or ()) if draft.get("fp32_norms") else (),
        fp8=bool(draft.get("fp8")),
        fp8_recipe=draft.sub("fp8_config").get("recipe") or "tensorwise",
    )


def _in_place_of_autocast(draft: Draft, engine: Engine) -> str:
    """The reason why autocast is not used; empty: the Trainer's autocast applies.

    accelerate's `prepare_model` wraps the forward in autocast. Its `_prepare_fsdp2` and `_prepare_deepspeed` do not call
    that method.
    """
    if engine == "fsdp2":
        return "FSDP2 casts parameters and outputs itself"
    if engine == "tensor" and uses_fsdp(draft):
        return "with fsdp_config and tensor parallelism the model computes in the dtype of its weights"
    return "DeepSpeed casts the parameters itself" if engine.startswith("zero") else ""


def _upcasts_embeddings(draft: Draft, cast_back: bool) -> bool:
    """True if the first cast includes embeddings and head. From 0.20.0 on it excludes them if they would be cast back."""
    if draft.get("load_in_4bit") and draft.get("embeddings_skip_upcast"):
        return False
    return draft.release.behaviour.upcasts_embeddings_always or not cast_back


def _kbit_skips(draft: Draft, base: BaseModel, cast_back: bool) -> tuple[str, ...]:
    """Names that peft's k-bit preparation leaves out: axolotl 0.20.0 `should_skip_peft_embedding_upcast`. In 0.19.0 only the
    key decides."""
    behaviour, asked = draft.release.behaviour, draft.get("embeddings_skip_upcast")
    skips = bool(asked) if asked is not None or behaviour.upcasts_embeddings_always else cast_back
    if not (draft.get("adapter") and skips):
        return ()
    by_type = behaviour.embeddings_by_model_type_in_kbit
    return embedding_names(base.model_type, draft.release) if by_type else LLAMA_NAMES


def _resolve_half(draft: Draft, gpu: Gpu) -> tuple[bool, bool]:
    """`bf16` and `fp16` after `resolve_dtype`.

    `auto` is bf16 on every NVIDIA card: `is_torch_bf16_gpu_available` calls torch's `is_bf16_supported`, which counts cards
    that emulate it (torch 2.13 and 2.14, `cuda/__init__.py`).
    """
    bf16, fp16 = draft.get("bf16"), draft.get("fp16")
    card = gpu.name or "an NVIDIA card"
    if bf16 == "auto":
        bf16 = not fp16
        if bf16:
            text = f"`bf16: auto` on {card}: torch reports bf16 as supported"
            draft.reason("precision.load_dtype", "bfloat16", text, key="bf16", origin="derived")
    if (bf16 or draft.get("bfloat16")) and gpu.compute_capability < BF16_CAPABILITY:
        text = f"bf16 runs on {card}, but torch emulates it, slowly; `fp16: true` with `bf16: false` is faster there"
        draft.note("warning", "bf16" if bf16 else "bfloat16", text)
    return bool(bf16), bool(fp16) and not bf16


def _load_dtype(draft: Draft, bf16: bool, fp16: bool) -> Dtype:
    dtype: Dtype = "float32"
    if bf16 or draft.get("bfloat16"):
        dtype = "bfloat16"
    elif draft.get("load_in_8bit") or fp16 or draft.get("float16"):
        dtype = "float16"
    if "precision.load_dtype" not in draft.reasons:
        given = [key for key in ("bf16", "bfloat16", "fp16", "float16") if draft.values.get(key)]
        if given:
            draft.reason("precision.load_dtype", dtype, f"`{given[0]}`", key=given[0])
        elif dtype == "float16":
            text = "`load_in_8bit` without bf16 or fp16 loads in fp16"
            draft.reason("precision.load_dtype", dtype, text, key="load_in_8bit", origin="derived")
        else:
            text = "none of bf16, fp16, bfloat16, float16 is on"
            draft.reason("precision.load_dtype", dtype, text, key="bf16", origin="derived")
    return dtype


def _autocast(draft: Draft, bf16: bool, fp16: bool) -> tuple[bool, Dtype]:
    if bf16 or draft.get("bfloat16"):
        key = "bf16" if bf16 else "bfloat16"
        text = f"`{key}` makes the Trainer run under bf16 autocast"
        if key == "bfloat16":
            text += ", although axolotl documents it as 'no AMP'"
        draft.reason("precision.autocast", "bfloat16", text, key=key, origin="derived")
        return True, "bfloat16"
    if fp16:
        text = "fp16 makes the Trainer run under fp16 autocast, with a gradient scaler"
        draft.reason("precision.autocast", "float16", text, key="fp16", origin="derived")
        return True, "float16"
    draft.reason("precision.autocast", "off", "neither bf16 nor fp16 is on", origin="derived")
    return False, "bfloat16"


def _cast_back(draft: Draft) -> tuple[bool, str]:
    """`should_convert` in `_configure_embedding_dtypes`, and why."""
    kernel = draft.get("attn_implementation")
    needs_cast = kernel is not None and kernel not in ATTENTION_WITHOUT_DTYPE_CAST
    qlora_fsdp = uses_fsdp(draft) and draft.get("adapter") == "qlora"
    if draft.get("cut_cross_entropy"):
        return True, "Cut Cross Entropy needs norms and embeddings in half precision"
    if qlora_fsdp:
        return False, "QLoRA with FSDP casts nothing"
    if draft.get("adapter"):
        return True, "with an adapter, norms and embeddings go back to the load dtype"
    if uses_fsdp(draft):
        return True, "with FSDP, norms and embeddings go to the load dtype"
    if needs_cast:
        return True, f"`attn_implementation: {kernel}` needs half-precision inputs: norms and embeddings go back"
    return False, "a full fine-tune with sdpa or eager attention leaves norms and embeddings in fp32"
