"""Settings that the base model's configuration excludes. Source: axolotl `loaders/utils.py` `check_model_config`."""

from __future__ import annotations

from collections.abc import Mapping

from axmem_trace.config.axolotl.embeddings import embedding_names
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import BaseModel

NATIVE_DIFFUSION_TYPES = (
    "Dream",
    "diffusion_gemma",
    "nemotron_labs_diffusion",
    "nemotron_labs_diffusion_vlm",
    "nemotron_twotower",
)
"""Models that axolotl 0.21.0 trains as diffusion models (`model_support/*`, `DiffusionSpec`)."""
PACKING_UNSUPPORTED_TYPES = ("inkling", "jamba", "minimax", "olmo_hybrid", "zamba", "zamba2")
"""Models with recurrent layers that do not know where a packed sample begins. axolotl refuses to pack for them from 0.20.0
on (`monkeypatch/models/recurrent_support.py` `PACKING_UNSUPPORTED`)."""


def refuse_on_base(draft: Draft, base: BaseModel) -> None:
    """Reports keys that contradict the model: `gptq` with a model that is not GPTQ, new tokens that an adapter would not
    train, tensor parallelism with tied embeddings, DenseMixer, packing, `diffusion_lm`."""
    own = base.config.get("quantization_config")
    method = own.get("quant_method") if isinstance(own, Mapping) else None
    if draft.get("gptq") and method not in ("gptq", "compressed-tensors"):
        problem = "axolotl refuses this: the base model's quantization_config is missing or not of GPTQ"
        draft.fail(draft.error(problem, "gptq", remedy="set base_model to a GPTQ model, or remove gptq"))
    _refuse_dense_mixer(draft, base)
    _refuse_packing(draft, base)
    _refuse_diffusion(draft, base)
    layers = embedding_names(base.model_type, draft.release)
    saved = draft.get("lora_modules_to_save") or []
    if draft.get("adapter") and draft.get("tokens") and not set(layers) <= set(saved):
        needed = list(dict.fromkeys([*saved, *layers]))
        line = f"lora_modules_to_save: [{', '.join(needed)}]"
        problem = "axolotl refuses this: with an adapter, new tokens need their embeddings in lora_modules_to_save"
        draft.refuse(f"{problem} (the figures are with `{line}`)", "tokens", remedy=f"add `{line}`")
        draft.values["lora_modules_to_save"] = needed
    if (draft.get("tensor_parallel_size") or 1) > 1 and base.config.get("tie_word_embeddings"):
        draft.refuse(
            "axolotl refuses this: tensor parallelism is incompatible with tied embeddings",
            "tensor_parallel_size",
            remedy="remove it, or use a model without `tie_word_embeddings`",
        )


def _refuse_diffusion(draft: Draft, base: BaseModel) -> None:
    """axolotl 0.21.0 `utils/config/__init__.py` `_validate_diffusion_lm_target`."""
    block = draft.get("diffusion_lm")
    if block is None or draft.sub("diffusion_lm").get("from_causal_lm") or base.model_type in NATIVE_DIFFUSION_TYPES:
        return
    draft.refuse(
        f"axolotl refuses this: {base.model_type} is not a diffusion model, so diffusion_lm would have no effect",
        "diffusion_lm",
        remedy="set `from_causal_lm: true` in it and list `axolotl.integrations.diffusion.DiffusionPlugin`",
    )


def _refuse_packing(draft: Draft, base: BaseModel) -> None:
    key = next((key for key in ("sample_packing", "batch_flattening") if draft.get(key) is True), "")
    if key and base.model_type in PACKING_UNSUPPORTED_TYPES and not draft.release.is_before("0.20.0"):
        draft.refuse(
            f"axolotl refuses this: the recurrent layers of {base.model_type} would pass their state from one packed "
            f"sample to the next (the figures are with `{key}: false`)",
            key,
            remedy=f"set `{key}: false`",
        )
        draft.values[key] = False


DENSE_MIXER_TYPES = ("olmoe", "qwen2_moe", "qwen3_moe")


def _refuse_dense_mixer(draft: Draft, base: BaseModel) -> None:
    """Reports the run's failure for the three types of model that axolotl `integrations/densemixer/plugin.py` patches.

    densemixer 1.0.1, the last release, calls `self.gate(x).to(...)`, but the routers of transformers 5 return a tuple.
    """
    if "densemixer" not in draft.plugins or not draft.get("dense_mixer"):
        return
    key = "dense_mixer" if draft.line("dense_mixer") else "plugins"
    if base.model_type in DENSE_MIXER_TYPES:
        draft.refuse(
            "the run fails in its first forward: densemixer 1.0.1 is written for transformers 4, whose routers and "
            "experts are different modules (the figures are without it)",
            key,
            remedy="remove the plugin, or set `dense_mixer: false`",
        )
        draft.values["dense_mixer"] = False
        return
    text = f"DenseMixer has no effect on {base.model_type}: axolotl patches only {', '.join(DENSE_MIXER_TYPES)}"
    draft.note("ignored", key, text)
