"""Masked-diffusion training: a bidirectional mask, all logits shifted to their inputs, and a loss over masked tokens.

Source: axolotl 0.19 `integrations/diffusion/trainer.py` (`_forward_process`, `_compute_diffusion_loss`) and `utils.py`
(`create_bidirectional_attention_mask`, `shift_logits_to_input_positions`). The number of masked tokens is random for
each row, uniform up to all tokens. Here all tokens are masked; a long run has rows with almost all tokens masked.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.models.built import BuiltModel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.batches.batch import Inputs
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.objectives.supervised import Supervised

_EPS = 1e-3


class Diffusion(Supervised):
    """axolotl 0.19 `integrations/diffusion/trainer.py`, `DiffusionTrainer.compute_loss`: the model gets no labels."""

    def __init__(self, recipe: Recipe, built: BuiltModel, recorder: Recorder) -> None:
        super().__init__(recipe, built)
        self._recorder = recorder

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """The loss, and the outputs with their fp32 logits [batch, tokens, vocabulary]. Local variables keep tensors
        alive until it returns."""
        return _compute_loss(run_model, inputs, self._recorder)


def _compute_loss(run_model: RunModel, inputs: Inputs, recorder: Recorder) -> tuple[torch.Tensor, Any]:
    ids, attention_mask = inputs["input_ids"], inputs.get("attention_mask")
    noisy, p_mask = _add_noise(ids, attention_mask)
    bidirectional_mask = _bidirectional(ids, attention_mask)
    outputs = run_model(input_ids=noisy.long(), attention_mask=bidirectional_mask)
    logits = outputs["logits"]
    logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
    rows, tokens = _all_positions(ids, recorder)
    masked_logits = logits[rows, tokens]
    masked_targets, masked_p = ids[rows, tokens], p_mask[rows, tokens]
    token_loss = F.cross_entropy(masked_logits.float(), masked_targets, reduction="none")
    weighted = token_loss / masked_p.float()
    loss = weighted.sum() / ids.numel()
    with torch.no_grad():
        (masked_logits.argmax(dim=-1) == masked_targets).float().mean()
    return loss, outputs


def _add_noise(ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The input, in which masked tokens are replaced, and the probability of each token to be masked."""
    t = torch.rand(ids.shape[0], device=ids.device)
    p_mask = ((1 - _EPS) * t + _EPS)[:, None].repeat(1, ids.shape[1])
    if attention_mask is not None:
        p_mask = p_mask * attention_mask.bool().float()
    masked = torch.rand(ids.shape, device=ids.device) < p_mask
    return torch.where(masked, torch.full_like(ids, 0), ids), p_mask


def _bidirectional(ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """[rows, 1, tokens, tokens], bool: true for two tokens of the same sample."""
    rows, tokens = ids.shape
    if attention_mask is None:
        return torch.ones(rows, 1, tokens, tokens, dtype=torch.bool, device=ids.device)
    queries, keys = attention_mask.unsqueeze(2), attention_mask.unsqueeze(1)
    return ((queries == keys) & (queries > 0)).unsqueeze(1)


def _all_positions(ids: torch.Tensor, recorder: Recorder) -> tuple[torch.Tensor, ...]:
    """The indices of every token, as in the result of `torch.where` with a full mask: columns of one tensor."""
    with recorder.paused():
        positions = torch.ones(ids.shape, dtype=torch.bool).nonzero()
    return recorder.place(positions, role="").unbind(1)
