"""Installs axolotl's LoRA kernels in a peft model, layer by layer, under the conditions that axolotl checks.

Source: axolotl 0.19 `monkeypatch/lora_kernels.py` (`apply_lora_kernel_patches`, `patch_self_attn_lora`,
`get_attention_cls_from_config`, `find_self_attn_in_layer`, `find_linear_attn_in_layer`, `find_mlp_in_layer`,
`get_layers`).

axolotl rewrites the source of the attention's forward, so that one call computes q, k and v. Here q's projection
computes all three when it is called, and k's and v's projections return its results. Memory is the same.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from torch import nn

from axmem_trace.kernels.lora.embedding import run_embedding
from axmem_trace.kernels.lora.functions import Order, run_projections
from axmem_trace.kernels.lora.mlp import run_mlp
from axmem_trace.kernels.lora.projection import DORA_CACHE
from axmem_trace.kernels.lora.separate_dropout import install_separate_dropout
from axmem_trace.kernels.lora.together import replace_together
from axmem_trace.kernels.modeling_files import modeling_module
from axmem_trace.kernels.site import Site, class_prefix
from axmem_trace.kernels.sources import note_source
from axmem_trace.models.skeleton.model_config import text_part
from axmem_trace.notes import Note, RefusalNote
from axmem_trace.recipe.run import LORA_KERNEL_KEYS

IN_PROJECTIONS = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
_QKV_LINES = (
    """\
query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
""",
    """\
query_states = self.q_norm(self.q_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
key_states = self.k_norm(self.k_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
""",
    "self.q_proj(hidden_states).view(*input_shape, -1, self.head_dim * 2), 2, dim=-1",
)
"""axolotl can rewrite an attention's forward if it contains one of these texts (`QKV_PATCHES`)."""
_REWRITES = frozenset({"qkv", "o"})
"""The kernels for which axolotl rewrites the attention's forward."""
_O_LINE = "attn_output = self.o_proj(attn_output)"
_ATTENTION = {
    "qwen3_vl": ("qwen3_vl", "Qwen3VLTextAttention"),
    "mllama": ("mllama", "MllamaTextSelfAttention"),
    "llama4": ("llama4", "Llama4TextAttention"),
    "mistral3": ("mistral", "MistralAttention"),
    "gemma3_text": ("gemma3", "Gemma3Attention"),
}
"""Attention classes that axolotl names. Others are called `<Prefix>Attention` (`get_attention_cls_from_config`)."""
_REWRITTEN_OTHERWISE = ("gemma4", "gemma4_text")
"""For these types axolotl has its own attention forward, which calls the kernels."""
_GATED_DELTA = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")


def install_lora_kernels(site: Site) -> None:
    """Replace the forwards of layers that fulfil axolotl's conditions. A note says which layers do not, and why."""
    wanted = site.recipe.kernels.lora
    if not wanted & {"mlp", "qkv", "o"} or not hasattr(site.model, "peft_config"):
        return
    if site.recipe.kernels.lora_library == "fms_acceleration":
        install_separate_dropout(site)
        return
    if site.recipe.quantisation.method == "bnb_8bit":
        _skip(site, wanted, "they cannot read int8 weights")
        return
    if getattr(site.model, "quantization_method", None) in ("gptq", "awq"):
        why = "they use `weight`, which most packed layers do not have, so the run fails: set these keys to "
        why += "false; axolotl switches them on if the configuration has none of them"
        _skip(site, wanted, why)
        return
    layers = _find_layers(site)
    if layers is None:
        _refuse(site, wanted, "axolotl does not find the layers of this architecture for its LoRA kernels")
        return
    site.stack.callback(_forget_norms, site.model)
    if wanted & {"qkv", "o"} and not _can_rewrite(site, layers):
        wanted = wanted - {"qkv", "o"}
    for layer in layers:
        _install_attention(site, layer, wanted)
        _install_linear_attention(site, layer, wanted)
        _install_mlp(site, layer, wanted)
    if "embedding" in wanted:
        _install_embedding(site)


def _find_layers(site: Site) -> list[nn.Module] | None:
    """`get_layers`: `model.layers` of the language model."""
    base = site.base
    for path in (("language_model",), ("model", "language_model"), ("model",)):
        parent: Any = base
        for name in path:
            parent = getattr(parent, name, None)
        if parent is not None:
            found = getattr(parent, "layers", None)
            return None if found is None else list(found)
    return None


# -- attention --------------------------------------------------------------------------------------------------------


def _install_attention(site: Site, layer: nn.Module, wanted: frozenset[str]) -> None:
    attention: Any = getattr(layer, "self_attn", None)
    if attention is None or not all(hasattr(attention, f"{name}_proj") for name in "qkvo"):
        return
    names = [name for name in ("q_proj", "k_proj", "v_proj") if getattr(attention, name) is not None]
    if "qkv" in wanted and _have_adapters(site, [getattr(attention, name) for name in names], "qkv"):
        _install_group(site, attention, names, "qkv")
        note_source(site, LORA_KERNEL_KEYS["qkv"])
    if "o" in wanted and _have_adapters(site, [attention.o_proj], "o"):
        _install_group(site, attention, ["o_proj"], "o")
        note_source(site, LORA_KERNEL_KEYS["o"])


def _can_rewrite(site: Site, layers: list[nn.Module]) -> bool:
    """True if axolotl's `patch_self_attn_lora` finds its lines in the forward of the attention class that it looks up.
    Otherwise the run fails. axolotl may also rewrite a class that the model does not use, which has no effect."""
    if site.model_type in _REWRITTEN_OTHERWISE:
        return True
    module, name = _ATTENTION.get(site.model_type, (site.model_type, f"{class_prefix(site.model_type)}Attention"))
    kind = getattr(modeling_module(module), name, None)
    if site.model_type.startswith("gemma4_unified"):
        text = "axolotl installs the QKV and O kernels in this architecture only with fused_attn_kernel"
    elif kind is None:
        _refuse(site, _REWRITES, f"axolotl finds no attention class {name} for its LoRA kernels")
        return False
    elif not _has_lines(inspect.getsource(kind.forward)):
        _refuse(site, _REWRITES, f"axolotl cannot rewrite {name}.forward for its LoRA kernels")
        return False
    elif not any(isinstance(module, kind) for layer in layers for module in layer.children()):
        text = f"axolotl rewrites {name}.forward, which this model does not use: q, k, v and o run unchanged"
    else:
        return True
    site.note(Note(kind="warning", key=LORA_KERNEL_KEYS["qkv"], text=text))
    return False


def _has_lines(source: str) -> bool:
    source = "\n".join(line.strip() for line in textwrap.dedent(source).splitlines())
    return any(lines in source for lines in _QKV_LINES) and _O_LINE in source


def _install_group(site: Site, owner: Any, names: list[str], order: Order) -> None:
    layers, wide = [getattr(owner, name) for name in names], _wide_gradients(site)
    replace_together(
        site,
        layers,
        lambda x: run_projections(layers, x, training=owner.training, order=order, wide_gradients=wide),
    )


def _wide_gradients(site: Site) -> bool:
    return site.recipe.kernels.lora_gradients == "parameter"


def _install_linear_attention(site: Site, layer: nn.Module, wanted: frozenset[str]) -> None:
    """Install the kernels in gated delta nets: axolotl's own forward for packed rows of Qwen3.5
    (`models/qwen3_5/modeling.py`)."""
    mixer: Any = getattr(layer, "linear_attn", None)
    if mixer is None or not (site.recipe.batch.packed and site.model_type in _GATED_DELTA):
        return
    if not all(hasattr(mixer, name) for name in (*IN_PROJECTIONS, "out_proj")):
        return
    if "qkv" in wanted and any(hasattr(getattr(mixer, name), "lora_A") for name in IN_PROJECTIONS):
        _install_group(site, mixer, list(IN_PROJECTIONS), "one by one")
    if "o" in wanted and hasattr(mixer.out_proj, "lora_A"):
        _install_group(site, mixer, ["out_proj"], "o")


# -- MLP and embedding ------------------------------------------------------------------------------------------------


def _install_mlp(site: Site, layer: nn.Module, wanted: frozenset[str]) -> None:
    mlp: Any = getattr(layer, "mlp", None)
    parts = ("gate_proj", "up_proj", "down_proj")
    if "mlp" not in wanted or mlp is None or not all(hasattr(mlp, name) for name in parts):
        return
    activation = _activation(site.base.config)
    if activation not in ("silu", "gelu"):
        _refuse(site, frozenset({"mlp"}), f"axolotl's LoRA kernel does not support the activation {activation!r}")
    elif _have_adapters(site, [getattr(mlp, name) for name in parts], "mlp"):
        wide = _wide_gradients(site)
        site.replace_forward(mlp, lambda self, x: run_mlp(self, x, wide_gradients=wide))
        note_source(site, LORA_KERNEL_KEYS["mlp"])


def _activation(config: Any) -> str:
    text = text_part(config)
    for name in ("hidden_act", "hidden_activation", "mlp_hidden_act"):
        if hasattr(text, name):
            found = str(getattr(text, name))
            return "gelu" if "gelu" in found else found
    return ""


def _install_embedding(site: Site) -> None:
    """Install the kernel in embeddings that have an adapter (`_patch_embedding_layers`)."""
    for embedding in _embeddings(site.base):
        if hasattr(embedding, "lora_embedding_A"):
            site.replace_forward(embedding, run_embedding)
            note_source(site, LORA_KERNEL_KEYS["embedding"])


def _embeddings(base: Any) -> Iterator[Any]:
    decoder = getattr(base, "model", None)
    for parent in (decoder, getattr(decoder, "language_model", None)):
        found = getattr(parent, "embed_tokens", None)
        if found is not None:
            yield found


# -- conditions -------------------------------------------------------------------------------------------------------


def _have_adapters(site: Site, layers: list[nn.Module], kernel: str) -> bool:
    if all(hasattr(layer, "lora_A") for layer in layers):
        return True
    text = (
        f"{LORA_KERNEL_KEYS[kernel]} needs LoRA on every projection that it fuses: some layers keep their own forward"
    )
    site.note(Note(kind="warning", key=LORA_KERNEL_KEYS[kernel], text=text))
    return False


def _skip(site: Site, wanted: frozenset[str], why: str) -> None:
    """Add one warning for all kernels, because axolotl may have switched them on itself."""
    keys = [LORA_KERNEL_KEYS[kernel] for kernel in sorted(wanted)]
    text = f"the LoRA kernels ({', '.join(keys)}) are not in the figures: {why}"
    site.note(Note(kind="warning", key=keys[0], text=text))


def _refuse(site: Site, kernels: frozenset[str], problem: str) -> None:
    """Add a refusal: axolotl fails while it patches the model.

    Source: `patch_self_attn_lora` (two asserts), `get_layers` and `apply_lora_kernel_patches` (NotImplementedError).
    """
    asked = [LORA_KERNEL_KEYS[kernel] for kernel in ("qkv", "o", "mlp") if kernel in site.recipe.kernels.lora & kernels]
    in_file = [key for key in asked if key in site.recipe.written]
    if not in_file:
        problem += "; it switches them on automatically if the configuration has none of their keys"
    names = ", ".join(f"`{key}: false`" for key in asked)
    text = f"the run fails: {problem} (the figures are without {', '.join(asked)})"
    site.note(RefusalNote(key=(in_file or asked)[0], text=text, remedy=f"set {names}"))


def _forget_norms(model: nn.Module) -> None:
    for parameter in model.parameters():
        if hasattr(parameter, DORA_CACHE):
            delattr(parameter, DORA_CACHE)
