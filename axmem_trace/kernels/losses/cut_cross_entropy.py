"""Cut Cross Entropy: computes the loss from hidden states and head, block by block in shared memory. Logits are never
stored.

Source: cut-cross-entropy 25.1.1 `cce.py` (`LinearCrossEntropyFunction`, `cce_linear_cross_entropy`),
`cce_lse_forward.py`, `indexed_dot.py`, `cce_backward.py`, `utils.py` (`_build_flat_valids`); axolotl 0.19
`integrations/cut_cross_entropy/__init__.py`. axolotl installs a fork, pinned by commit, that is in no package index. We
read the source of the published package; the fork has the same kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.losses.causal_lm import replace_causal_lm_loss
from axmem_trace.kernels.losses.replacing import IGNORE
from axmem_trace.kernels.modeling_files import modeling_module
from axmem_trace.kernels.site import Site
from axmem_trace.kernels.sources import note_source
from axmem_trace.models.skeleton.model_config import text_part
from axmem_trace.notes import Note, RefusalNote

KEY = "cut_cross_entropy"
ROWS_PER_LOCK = 128
COLUMNS_PER_LOCK = 64
SUPPORTED = frozenset(
    """
    afmoe apertus arcee cohere cohere2 cohere2_moe cohere2_vision cohere_compass cohere_compass_text deepseek_v2
    deepseek_v3 deepseek_v4 exaone4 exaone4_5 exaone_moe gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4
    gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm46v glm4v glm4v_moe glm_image
    glm_moe_dsa gpt_oss granite granitemoe granitemoehybrid granitemoeshared hunyuan_v1_dense hunyuan_v1_moe internvl
    kimi_linear lfm2 lfm2_moe lfm2_vl llama llama4 llama4_text llava minimax minimax_m2 ministral ministral3 mistral
    mistral3 mistral4 mixtral mllama muse_glimmer nemotron_h olmo olmo2 olmo3 olmoe phi phi3 phi4_multimodal qwen2
    qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next
    qwen3_vl qwen3_vl_moe qwen4_exp qwen4_exp_text seed_oss smollm3 step3p5 step3p7 voxtral
    """.split()
)
"""axolotl `integrations/cut_cross_entropy/README.md`: types that have a patch. Others get a generic one, which
needs a class `<Prefix>ForCausalLM` with a decoder called `model`, as Llama has."""
REFUSED = ("paddleocr_vl",)


class CutCrossEntropy(torch.autograd.Function):
    """Keeps hidden states and head (no copies), an fp32 logsumexp per token, targets, the indices of valid tokens and
    an fp32 mean logit per vocabulary entry. Backward computes both gradients together, and allocates int32 locks."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> Any:
        num_valid, vocabulary, device = valid.shape[0], head.shape[0], hidden.device
        lse = hidden.new_full((num_valid,), -float("inf"), dtype=torch.float32)
        locks = torch.empty(-(-num_valid // ROWS_PER_LOCK), dtype=torch.int32, device=device)
        needs_grad = hidden.requires_grad or head.requires_grad
        mean_logit = hidden.new_zeros(vocabulary, dtype=torch.float32) if needs_grad else None
        del locks
        loss_by_token = hidden.new_zeros(num_valid, dtype=torch.float32)
        loss = loss_by_token.add_(lse).sum()
        ctx.save_for_backward(hidden, head, lse, target, valid, mean_logit)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        hidden, head, _, _, valid, mean_logit = ctx.saved_tensors
        order = torch.argsort(mean_logit).to(torch.int32)
        grad_hidden = torch.zeros_like(hidden)
        grad_head = torch.zeros_like(head, dtype=hidden.dtype) if head.requires_grad else None
        num_columns = -(-head.shape[1] // COLUMNS_PER_LOCK)
        locks = [
            hidden.new_zeros(-(-rows // num_columns), num_columns, dtype=torch.int32)
            for rows in (valid.shape[0], head.shape[0])
        ]
        grad_head = None if grad_head is None else grad_head.to(head.dtype)  # order and locks are still alive
        del order, locks
        return grad_hidden, grad_head, None, None


def cut_causal_lm_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Replaces `apply_lce`: hidden [batch, tokens, width], weight [vocabulary, width], labels [batch, tokens].

    The kernel's indices do the shift. Every token except the last of a row is assumed to have a label.
    """
    target = labels if shift_labels is None else shift_labels
    hidden, target = hidden.contiguous(), target.contiguous()
    valid = _flat_valids(target if shift_labels is not None else target[..., 1:])
    loss: torch.Tensor = CutCrossEntropy.apply(hidden.flatten(0, -2), weight, target.flatten(), valid)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def _flat_valids(target: torch.Tensor) -> torch.Tensor:
    """`_build_flat_valids`: allocates a mask, its indices as int64 pairs, as int32 pairs, and their sums."""
    mask = target != IGNORE
    pairs = torch.empty(target.numel(), target.ndim, dtype=torch.int64, device=target.device).to(torch.int32)
    del mask
    return pairs.sum(1)


def install_cut_cross_entropy(site: Site) -> None:
    """Install it for training and evaluation (`PatchOptions.train_only` is off)."""
    if site.recipe.loss.path != "cut_cross_entropy":
        return
    kind = site.model_type
    if kind in REFUSED:
        site.note(_refuse(f"axolotl refuses Cut Cross Entropy for {kind}"))
        return
    if kind not in SUPPORTED:
        if modeling_module(kind) is None or not hasattr(site.base, "model"):
            site.note(_refuse(f"the run fails: Cut Cross Entropy does not know {kind}"))
            return
        text = f"Cut Cross Entropy has no patch for {kind}: axolotl tries a generic one"
        site.note(Note(kind="warning", key=KEY, text=text))
    scale = _logit_scale(site.base.config)
    if replace_causal_lm_loss(site, cut_causal_lm_loss, in_evaluation=True, key=KEY, scale=scale):
        note_source(site, KEY)


def _refuse(problem: str) -> RefusalNote:
    text = f"{problem} (the figures are with the model's own loss, which computes logits)"
    return RefusalNote(key=KEY, text=text, remedy="set `cut_cross_entropy: false`, or remove its plugin")


def _logit_scale(config: Any) -> Any:
    """The factor by which Cohere and Granite scale their logits. Without logits, it is applied to the hidden states."""
    text = text_part(config)
    factor = getattr(text, "logit_scale", None) or getattr(text, "logits_scaling", None)
    if not isinstance(factor, int | float) or factor == 1:
        return None
    return lambda hidden: hidden * factor
