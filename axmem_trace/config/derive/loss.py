"""The loss path. Source: axolotl `integrations/{liger,cut_cross_entropy,kd}`, `monkeypatch/loss`."""

from __future__ import annotations

from typing import Literal

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import BaseModel, Loss

_LossPath = Literal["native", "liger_cross_entropy", "liger_fused_linear", "cut_cross_entropy", "chunked", "eaft", "kd"]
_LOSS_KEYS: tuple[tuple[str, _LossPath], ...] = (
    ("kd_trainer", "kd"),
    ("use_eaft", "eaft"),
    ("liger_fused_linear_cross_entropy", "liger_fused_linear"),
    ("cut_cross_entropy", "cut_cross_entropy"),
    ("chunked_cross_entropy", "chunked"),
    ("liger_cross_entropy", "liger_cross_entropy"),
)


def derive_loss(draft: Draft, base: BaseModel) -> Loss:
    """`Loss` from the keys and the listed plugins."""
    chunks = draft.get("chunked_cross_entropy_num_chunks") or 8
    if "diffusion" in draft.plugins:
        return _diffusion(draft)
    for key, path in _LOSS_KEYS:
        if draft.get(key):
            given = key in draft.values
            text = f"`{key}`" if given else f"on automatically, because the plugin of `{key}` is listed"
            draft.reason(
                "loss.path", path, text, key=key if given else "plugins", origin="config" if given else "derived"
            )
            scaling = path == "liger_fused_linear" and bool(draft.get("liger_use_token_scaling"))
            online = path == "kd" and draft.get("kd_online_server_base_url")
            teacher_tokens = int(draft.get("kd_online_topk") or 0) if online else 0
            return Loss(path=path, num_chunks=chunks, token_scaling=scaling, teacher_tokens=teacher_tokens)
    draft.reason("loss.path", "native", "no fused or chunked cross-entropy is on: transformers' own", origin="default")
    return Loss(num_chunks=chunks, cross_entropy="flash" if _flash(draft, base) else "torch")


def _flash(draft: Draft, base: BaseModel) -> bool:
    """`_patch_loss_llama` (loaders/patch_manager.py): for models that axolotl treats as Llama, with flash-attn."""
    key = "flash_attn_cross_entropy"
    if not draft.get(key):
        return False
    names = (str(draft.get("base_model")), str(draft.get("type_of_model") or ""))
    derived = base.model_type in ("llama", "mllama_text_model") or draft.get("is_llama_derived_model")
    if not (derived or any("llama" in name.lower() for name in names)):
        draft.note("ignored", key, f"`{key}` has no effect on {base.model_type}: axolotl only patches Llama models")
        return False
    draft.note("assumed", key, "flash-attn is assumed to be installed: without it axolotl does not change the loss")
    return True


def _diffusion(draft: Draft) -> Loss:
    """The plugin has its own trainer, which passes no labels to the model: no fused loss is used.

    Raises:
        ConfigError: FlashAttention, because transformers cannot unpad rows with a mask of four dimensions.
    """
    draft.reason("loss.path", "diffusion", "the diffusion plugin's trainer", key="plugins", origin="derived")
    kernel = str(draft.get("attn_implementation") or "")
    if kernel.startswith("flash_attention"):
        raise draft.error(
            "the run fails in its first forward: diffusion training passes a mask of rows x 1 x tokens x tokens, but "
            "transformers' flash attention needs a mask of rows x tokens to remove the padding",
            "attn_implementation",
            remedy="set `attn_implementation: sdpa`, or eager",
        )
    text = (
        "diffusion masks a random part of each row: the figures are for a step in which all tokens are masked, and some "
        "step of a long run comes close to that. Not counted: the mask token that axolotl may add to the tokenizer, and "
        "generated samples"
    )
    draft.note("assumed", "plugins", text)
    return Loss(path="diffusion")
