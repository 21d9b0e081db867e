"""axolotl's fused attention kernel (`fused_attn_kernel`): the norms of q and k, fused with the rotary embedding.

Source: axolotl 0.19 `kernels/gemma4_fused_rope.py` (`fused_rms_norm_rope`), `monkeypatch/models/qwen3*/fused_attn.py`,
`loaders/patch_manager.py` (`_FUSED_ATTN_KERNEL_SUPPORTED`).

Here the forwards of the norms return their input. The rotation, which is called directly after them, then runs the kernel
with the weights of the norms.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.card import sms_of
from axmem_trace.kernels.modeling_files import modeling_module
from axmem_trace.kernels.site import Site
from axmem_trace.kernels.sources import note_source
from axmem_trace.notes import Note

KEY = "fused_attn_kernel"
BLOCKS_PER_SM = 8
"""`_BWD_BLOCKS_PER_SM`: programs of the backward kernel for each SM; each program has one row of the weight's gradient."""
_ATTENTION = {
    "qwen3": ("qwen3", "Qwen3Attention"), "qwen3_moe": ("qwen3_moe", "Qwen3MoeAttention"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLTextAttention"), "qwen3_vl_text": ("qwen3_vl", "Qwen3VLTextAttention"),
    "qwen3_5": ("qwen3_5", "Qwen3_5Attention"), "qwen3_5_text": ("qwen3_5", "Qwen3_5Attention"),
    "qwen3_5_moe": ("qwen3_5_moe", "Qwen3_5MoeAttention"),
    "qwen3_5_moe_text": ("qwen3_5_moe", "Qwen3_5MoeAttention"),
}  # fmt: skip
_GEMMA4 = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")


class NormAndRope(torch.autograd.Function):
    """Keeps x [rows, head_dim], weight, cos and sin [tokens, rotated], and one fp32 value per row, the reciprocal of its
    norm."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_programs: int
    ) -> torch.Tensor:
        y = torch.empty_like(x)
        rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, cos, sin, rstd)
        ctx.num_programs = num_programs
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        dy = grad_outputs[0].contiguous()
        x, weight, *_ = ctx.saved_tensors
        dx = torch.empty_like(x)
        num_rows = dy.shape[0]
        rows_per_program = max(1, -(-num_rows // min(ctx.num_programs, num_rows)))
        partial = torch.empty(-(-num_rows // rows_per_program), dy.shape[1], dtype=torch.float32, device=x.device)
        return dx, partial.sum(dim=0).to(weight.dtype), None, None, None


def norm_and_rotate(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_programs: int
) -> torch.Tensor:
    """`fused_rms_norm_rope`: x [batch, tokens, heads, head_dim]; cos and sin [1 or batch, tokens, rotated], which are
    copied for a batch of several rows."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if cos.shape[0] != x.shape[0]:
        cos, sin = (each.expand(x.shape[0], *each.shape[1:]) for each in (cos, sin))
    cos, sin = (each.reshape(-1, each.shape[-1]).contiguous() for each in (cos, sin))
    out: torch.Tensor = NormAndRope.apply(rows, weight, cos, sin, num_programs)
    return out.view(x.shape)


def install_fused_attention(site: Site) -> None:
    """Install the kernel for Qwen 3 and 3.5; add a note for Gemma 4, which always uses it, and for types without it."""
    asked = site.recipe.attention.fused_attn_kernel
    if site.model_type in _GEMMA4:
        text = "axolotl runs Gemma 4's norms and rotation in fused kernels, but the figures are with transformers' own"
        text += ": the attention layers of the run keep less than shown"
        site.note(Note(kind="not_modelled", key=KEY, text=text, direction="less", touches="activations"))
    elif asked and site.model_type in _ATTENTION:
        _install(site, *_ATTENTION[site.model_type])
    elif asked:
        text = f"axolotl has no fused attention kernel for {site.model_type}: the key has no effect"
        site.note(Note(kind="warning", key=KEY, text=text))


def _install(site: Site, module_name: str, class_name: str) -> None:
    modeling = modeling_module(module_name)
    if modeling is None:
        return
    weights: dict[str, torch.Tensor] = {}
    num_programs = BLOCKS_PER_SM * sms_of(site.recipe.gpu.compute_capability)

    def make_waiting(name: str) -> Any:
        def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
            weights[name] = self.weight
            return x

        return forward

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any) -> Any:
        turned = [
            norm_and_rotate(each.transpose(1, 2), weights.pop(name), cos, sin, num_programs).transpose(1, 2)
            for name, each in (("q", q), ("k", k))
        ]
        return tuple(turned)

    for attention in site.instances((class_name,)):
        site.replace_forward(attention.q_norm, make_waiting("q"))  # type: ignore[arg-type]
        site.replace_forward(attention.k_norm, make_waiting("k"))  # type: ignore[arg-type]
    site.replace_attribute(modeling, "apply_rotary_pos_emb", rotate)
    note_source(site, KEY)
