"""Installs Liger's kernels as axolotl's plugin does: by class name, for the architectures that Liger supports.

Source: axolotl 0.19 `integrations/liger/plugin.py`; liger-kernel 0.8.1 `transformers/{rms_norm,layer_norm,swiglu,
geglu}.py` for the forwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.card import sms_of
from axmem_trace.kernels.liger import layers, losses
from axmem_trace.kernels.liger.experts import run_experts
from axmem_trace.kernels.liger.fused_linear import FusedLinearCrossEntropy
from axmem_trace.kernels.liger.table import LIGER, Support
from axmem_trace.kernels.losses.causal_lm import replace_causal_lm_loss
from axmem_trace.kernels.modeling_files import modeling_module
from axmem_trace.kernels.site import Site
from axmem_trace.kernels.sources import note_source
from axmem_trace.models.skeleton.model_config import text_part
from axmem_trace.notes import Note, RefusalNote
from axmem_trace.recipe.run import LIGER_KEYS

UNSUPPORTED = ("paddleocr_vl", "qwen4_exp", "qwen4_exp_text")
"""Architectures for which axolotl refuses Liger (`model_support/*`, capability `liger`)."""


def install_liger(site: Site) -> None:
    """Install Liger's layers and losses, if the recipe requests them and the architecture has them."""
    loss = site.recipe.loss.path
    wants_loss = loss in ("liger_cross_entropy", "liger_fused_linear")
    if not site.recipe.kernels.liger and not wants_loss:
        return
    if site.model_type in UNSUPPORTED:
        _refuse(site)
        return
    support = _find_support(site)
    if support is None:
        _install_generic(site)
        return
    for kernel in sorted(site.recipe.kernels.liger):
        if _LAYER_INSTALLERS[kernel](site, support):
            note_source(site, LIGER_KEYS[kernel])
        else:
            text = f"Liger has no such kernel for {site.model_type}: nothing is replaced"
            site.note(Note(kind="warning", key=LIGER_KEYS[kernel], text=text))
    if support.squared_relu:
        _install_squared_relu(site)
    if loss == "liger_cross_entropy":
        _install_cross_entropy(site, support)
    elif loss == "liger_fused_linear":
        _install_fused_linear(site, support.fused_loss)


def _find_support(site: Site) -> Support | None:
    """The table's entry for the model. PaliGemma's entry also includes the layers of its text model, Gemma or Gemma 2
    (`apply_liger_kernel_to_paligemma` calls both functions)."""
    found = LIGER.get(site.model_type)
    text = LIGER.get(text_part(site.base.config).model_type) if site.model_type == "paligemma" else None
    if found is None or text is None:
        return found
    return replace(
        found, module=text.module, rope=text.rope, norms=text.norms, norms_in_place=text.norms_in_place, glu=text.glu
    )


def _refuse(site: Site) -> None:
    """axolotl `integrations/liger/plugin.py` `pre_model_load`, `model_support/base.py` `check_capability`."""
    asked = [key for key in site.recipe.written if key.startswith("liger_")]
    text = f"axolotl refuses Liger for {site.model_type} (the figures are without it)"
    site.note(
        RefusalNote(key=asked[0] if asked else "plugins", text=text, remedy="turn Liger's keys off for this model")
    )


def _install_generic(site: Site) -> None:
    """axolotl `models/base.py` `patch_lce_forward`: installs only the fused loss, for types that Liger does not know."""
    if site.recipe.loss.path == "liger_fused_linear":
        _install_fused_linear(site, (type(site.base).__name__,))
        text = f"Liger does not know {site.model_type}: axolotl installs only its generic fused linear cross-entropy"
    else:
        text = f"Liger does not know {site.model_type}: axolotl warns and installs nothing"
    site.note(Note(kind="warning", key="plugins", text=text))


# -- layers -----------------------------------------------------------------------------------------------------------


def _install_rope(site: Site, support: Support) -> bool:
    modeling = modeling_module(support.module)
    if modeling is None or support.rope in ("none", "refused"):
        return False
    if support.rope == "llama4":
        text = (
            "Liger's rotary kernel for Llama 4 works on q and k in place, but the figures are with transformers' own: "
        )
        text += "the run needs a few percent less of a layer's temporary memory"
        site.note(Note(kind="not_modelled", key="liger_rope", text=text, direction="less", touches="activations"))
        return True
    replacements = {"apply_rotary_pos_emb": layers.rotate}
    if support.rope == "multimodal":
        replacements = {"apply_multimodal_rotary_pos_emb": layers.rotate_multimodal}
    if support.rope == "text and vision":
        replacements["apply_rotary_pos_emb_vision"] = layers.rotate_vision
    found = [name for name in replacements if hasattr(modeling, name)]
    for name in found:
        site.replace_attribute(modeling, name, replacements[name])
    return bool(found)


def _install_rms_norm(site: Site, support: Support) -> bool:
    num_sms = sms_of(site.recipe.gpu.compute_capability)

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = layers.RmsNorm.apply(hidden_states, self.weight, support.norms_in_place, num_sms)
        return out

    norms = set(site.instances(support.norms))
    found = [
        norm for norm in _named_later(site, support) if norm in norms and getattr(norm, "weight", None) is not None
    ]
    for norm in found:
        site.replace_forward(norm, forward)
    return bool(found)


def _named_later(site: Site, support: Support) -> Iterator[nn.Module]:
    """Modules whose class is looked up by name when the model is built. For them, replacing the name has an effect."""
    for name, module in site.model.named_modules():
        if name.rpartition(".")[2] not in support.in_table:
            yield module


def _install_gated_norm(site: Site, support: Support) -> bool:
    num_sms = sms_of(site.recipe.gpu.compute_capability)

    def forward(self: Any, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = layers.GatedRmsNorm.apply(hidden_states, gate, self.weight, num_sms)
        return out

    found = list(site.instances(support.gated_norms))
    for norm in found:
        site.replace_forward(norm, forward)
    return bool(found)


def _install_layer_norm(site: Site, support: Support) -> bool:
    """Replace `torch.nn.LayerNorm`, except norms without bias, which would get a bias. Liger does it while the model is
    built."""
    num_sms = sms_of(site.recipe.gpu.compute_capability)

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = layers.LayerNorm.apply(hidden_states, self.weight, self.bias, num_sms)
        return out

    norms = [norm for norm in _named_later(site, support) if type(norm) is nn.LayerNorm]
    found = [norm for norm in norms if norm.bias is not None]
    if not support.layer_norm:
        return False
    for norm in found:
        site.replace_forward(norm, forward)
    return bool(found)


def _install_glu(site: Site, support: Support) -> bool:
    mlps, experts = list(site.instances(support.glu)), list(site.instances(support.experts))
    for mlp in mlps:
        site.replace_forward(mlp, _run_fused_glu if hasattr(mlp, "gate_up_proj") else _run_glu)
    for module in experts:
        weight = getattr(module, "gate_up_proj", None)
        if isinstance(weight, torch.Tensor) and weight.is_floating_point():
            site.replace_forward(module, run_experts)
        else:
            text = f"Liger's fused experts over quantised weights ({type(module).__name__}) are not modelled"
            site.note(
                Note(
                    kind="not_modelled",
                    key="liger_glu_activation",
                    text=text,
                    direction="either",
                    touches="activations",
                )
            )
    return bool(mlps or experts)


def _run_glu(self: Any, x: torch.Tensor) -> torch.Tensor:
    """`LigerSwiGLUMLP`, `LigerGEGLUMLP`, `LigerFalconH1SwiGLUMLP`."""
    scaled = float(getattr(self, "down_multiplier", 1.0)) != 1.0
    product = layers.GatedActivation.apply(self.gate_proj(x), self.up_proj(x), scaled)
    out: torch.Tensor = self.down_proj(product)
    return out


def _run_fused_glu(self: Any, x: torch.Tensor) -> torch.Tensor:
    """`LigerPhi3SwiGLUMLP`: the kernel needs contiguous copies of both halves of one projection."""
    up = self.gate_up_proj(x)
    gate, up = up.chunk(2, dim=-1)
    out: torch.Tensor = self.down_proj(layers.GatedActivation.apply(gate, up, False))
    return out


def _install_squared_relu(site: Site) -> None:
    """Replace Nemotron's activation. This is Liger's default, and axolotl's keys cannot switch it off."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = layers.SquaredRelu.apply(x)
        return out

    for activation in site.instances(("ReLUSquaredActivation",)):
        site.replace_forward(activation, forward)


_LAYER_INSTALLERS = {
    "rope": _install_rope,
    "rms_norm": _install_rms_norm,
    "rms_norm_gated": _install_gated_norm,
    "layer_norm": _install_layer_norm,
    "glu_activation": _install_glu,
}


# -- losses -----------------------------------------------------------------------------------------------------------


def _install_cross_entropy(site: Site, support: Support) -> None:
    modeling = modeling_module(support.module)
    if support.cross_entropy == "function":
        site.replace_attribute(torch.nn.functional, "cross_entropy", losses.cross_entropy)
        note_source(site, "liger_cross_entropy")
    elif support.cross_entropy == "class":
        site.replace_attribute(torch.nn, "CrossEntropyLoss", losses.CrossEntropyLoss)
        _warn_no_effect(site, "torch.nn.CrossEntropyLoss")
    elif support.cross_entropy == "name" and hasattr(modeling, "CrossEntropyLoss"):
        site.replace_attribute(modeling, "CrossEntropyLoss", losses.CrossEntropyLoss)
    else:
        _warn_no_effect(site, "a name in the model's file")


def _warn_no_effect(site: Site, replaced: str) -> None:
    text = (
        f"for {site.model_type} Liger replaces {replaced}, which transformers' `ForCausalLMLoss` does not use: the "
        "loss stays transformers' own"
    )
    site.note(Note(kind="warning", key="liger_cross_entropy", text=text))


def _install_fused_linear(site: Site, class_names: tuple[str, ...]) -> None:
    """Replace the loss in training, so that there are no logits. Evaluation runs the unchanged model, which has logits."""

    def compute(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return losses.fused_causal_lm_loss(
            hidden,
            weight,
            labels,
            kwargs.get("num_items_in_batch"),
            shift_labels=kwargs.get("shift_labels"),
            token_scaling=site.recipe.loss.token_scaling,
            fused=None if site.recipe.kernels.liger_loss == "0.8.1" else newest,
        )

    def newest(*arguments: Any) -> torch.Tensor:
        loss: torch.Tensor = FusedLinearCrossEntropy.apply(*arguments, site.context.compute_capability >= (8, 0))
        return loss

    if type(site.base).__name__ not in class_names:
        text = f"Liger has no fused linear cross-entropy for {type(site.base).__name__}: the loss is transformers' own"
        site.note(Note(kind="warning", key="liger_fused_linear_cross_entropy", text=text))
        return
    if replace_causal_lm_loss(site, compute, in_evaluation=False, key="liger_fused_linear_cross_entropy"):
        note_source(site, "liger_fused_linear_cross_entropy")
