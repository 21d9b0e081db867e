"""One note for each installed fused kernel: a rule calculates its memory, and the note names the rule's source."""

from __future__ import annotations

from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note

_LIGER = "liger-kernel 0.8.1, ops/"
_LORA = "axolotl 0.19, kernels/lora.py"
_SOURCES = {
    "liger_rope": f"Liger's rotary kernel: rotates q and k in place and keeps cos and sin ({_LIGER}rope.py)",
    "liger_rms_norm": f"Liger's RMSNorm: keeps its input and one fp32 number per row ({_LIGER}rms_norm.py)",
    "liger_rms_norm_gated": "axolotl's gated RMSNorm: keeps its input, the gate and one fp32 number per row (axolotl "
    "0.19, kernels/rms_norm_gated.py)",
    "liger_layer_norm": f"Liger's LayerNorm: keeps its input, mean and reciprocal per row ({_LIGER}layer_norm.py)",
    "liger_glu_activation": "Liger's gated activation: keeps only gate and up, and backward overwrites them with their "
    f"gradients ({_LIGER}swiglu.py, geglu.py; experts: fused_moe.py)",
    "liger_cross_entropy": f"Liger's cross-entropy: the gradient overwrites the logits ({_LIGER}cross_entropy.py)",
    "liger_fused_linear_cross_entropy": "Liger's fused linear cross-entropy: in training, logits are computed in chunks of "
    "tokens, and forward computes the gradients of hidden states and head "
    f"({_LIGER}fused_linear_cross_entropy.py)",
    "cut_cross_entropy": "Cut Cross Entropy: no logits; an fp32 number per token and per vocabulary entry "
    "(cut-cross-entropy 25.1.1, cce.py; axolotl installs a fork of it that is on no package index)",
    "lora_mlp_kernel": f"axolotl's LoRA MLP: keeps input, gate and up ({_LORA}, LoRA_MLP)",
    "lora_qkv_kernel": f"axolotl's LoRA QKV: keeps the input once for all projections ({_LORA}, LoRA_QKV)",
    "lora_o_kernel": f"axolotl's LoRA output projection ({_LORA}, LoRA_O)",
    "lora_embedding_kernel": f"axolotl's LoRA embedding: backward works in fp32 ({_LORA}, LoRA_Embedding)",
    "tiled_mlp": "axolotl's tiled MLP: keeps the input and runs again, tile by tile, in backward (axolotl 0.19, "
    "monkeypatch/tiled_mlp/base.py)",
    "fused_attn_kernel": "axolotl's fused norm and rotation of q and k: keeps their input and one fp32 number per row "
    "(axolotl 0.19, kernels/gemma4_fused_rope.py)",
}


def note_source(site: Site, key: str) -> None:
    """Adds the kernel's note; `key` is the configuration's key that selects it."""
    site.note(Note(kind="ruled", key=key, text=_SOURCES[key]))
