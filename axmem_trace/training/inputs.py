"""The batches that a data collator would hand to the trainer, as real CPU tensors with values that libraries look at."""

from __future__ import annotations

import torch

from axmem_trace.recipe.types import Recipe

Inputs = dict[str, torch.Tensor]
_ORDINARY_TOKEN = 10
"""Any token that is neither padding nor an image placeholder would do."""


def make_text_batch(recipe: Recipe, *, rows: int, row_tokens: int, packed: bool) -> Inputs:
    """`input_ids`, `labels` and what the collator adds, all int64 of shape [rows, row_tokens].

    Every row is full, as the longest would be, except that a padded batch has its last row one token shorter: what
    matters to kernels is that the mask has a zero. Packed rows hold `samples_per_row` samples of equal length, numbered
    1, 2, ... in the mask, with positions that begin anew in each.

    Source: axolotl `utils/collators/batching.py`, `DataCollatorForSeq2Seq`, `V2BatchSamplerDataCollatorForSeq2Seq`.
    """
    batch = recipe.batch
    ids = torch.full((rows, row_tokens), _ORDINARY_TOKEN, dtype=torch.int64)
    inputs: Inputs = {"input_ids": ids}
    samples = max(1, batch.samples_per_row) if packed else 1
    length = -(-row_tokens // samples)
    if batch.attention_mask:
        mask = (torch.arange(row_tokens) // length + 1).expand(rows, -1).clone() if packed else torch.ones_like(ids)
        if batch.padded:
            mask[-1, -1] = 0
        inputs["attention_mask"] = mask
    if packed:
        inputs["position_ids"] = (torch.arange(row_tokens) % length).expand(rows, -1).clone()
    inputs["labels"] = _make_labels(recipe, ids)
    return inputs


def _make_labels(recipe: Recipe, ids: torch.Tensor) -> torch.Tensor:
    if recipe.model.task == "sequence-classification":
        if recipe.model.num_labels == 1:  # a regression, or a reward: transformers compares with floats
            return torch.zeros(ids.shape[0], dtype=torch.float32)
        return torch.zeros(ids.shape[0], dtype=torch.int64)
    if recipe.model.task == "token-classification":
        return torch.zeros_like(ids)
    return ids.clone()
