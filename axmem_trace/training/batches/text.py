"""The batches that a data collator would return to the trainer, as CPU tensors with the values that libraries read."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.losses.replacing import IGNORE
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.batches.media import make_media, reads_media
from axmem_trace.training.batches.media.types import SEPARATOR, Media

_ORDINARY_TOKEN = 10
"""Any token that is neither padding nor an image placeholder."""
_PACKED_WITHOUT_MASK = ("gemma3", "gemma4", "gemma4_unified")
"""Models whose packed rows get positions but no mask: with a mask, transformers does not look for sample boundaries."""


def make_batch(recipe: Recipe, config: Any, *, rows: int, row_tokens: int, packed: bool) -> Batch:
    """A batch of the run: text, and the images or audio in the rows of a multimodal run.

    Source: axolotl `utils/collators/mm_chat.py` (the processor's own tensors, and labels without placeholders),
    `core/trainers/base.py` `compute_loss` (Gemma 4's token types, also for text only; Gemma 3's and 4's packed rows
    lose their mask).

    Args:
        config: the built model's configuration.
    """
    notes = Notes()
    num_true: dict[tuple[int, ...], int] = {}
    ordinary = _ordinary_token(config)
    inputs = make_text_batch(recipe, rows=rows, row_tokens=row_tokens, packed=packed, token=ordinary)
    if reads_media(recipe):
        found, images = make_media(recipe, config, rows=rows, max_tokens=row_tokens, notes=notes)
        spans = [media.span for media in found for _ in range(1 if "input_features" in media.inputs else images)]
        needed = 1 + sum(len(span) + 1 for span in spans)
        if found and needed > row_tokens:
            notes.append(_note_longer_rows(needed, row_tokens))
            inputs = make_text_batch(recipe, rows=rows, row_tokens=needed, packed=packed, token=ordinary)
        for media in found:
            inputs.update(media.inputs)
            num_true.update(media.num_true)
        _write_spans(inputs, spans, ordinary)
        _mark_placeholders(inputs, found)
    if getattr(config, "model_type", "") in ("gemma4", "gemma4_unified"):
        inputs.setdefault("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
    if getattr(config, "model_type", "") in _PACKED_WITHOUT_MASK and "position_ids" in inputs:
        inputs.pop("attention_mask", None)
    return Batch(inputs, num_true, tuple(notes))


def make_text_batch(
    recipe: Recipe, *, rows: int, row_tokens: int, packed: bool, token: int = _ORDINARY_TOKEN
) -> Inputs:
    """`input_ids`, `labels` and the collator's other tensors, all int64 of shape [rows, row_tokens].

    Every row has full length. In a padded batch the last row is one token shorter, because kernels only depend on
    whether the mask has a zero. Packed rows hold `samples_per_row` samples of equal length, numbered 1, 2, ... in the
    mask, with positions that start at 0 in each.

    Source: axolotl `utils/collators/batching.py`, `DataCollatorForSeq2Seq`, `V2BatchSamplerDataCollatorForSeq2Seq`.
    """
    batch = recipe.batch
    ids = torch.full((rows, row_tokens), token, dtype=torch.int64)
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


def _ordinary_token(config: Any) -> int:
    """The first id from 10 on that is not a special token of the configuration (Mistral 3's image token is 10)."""
    parts = (config, getattr(config, "text_config", None))
    named = {
        value
        for part in parts
        if part is not None
        for name, value in vars(part).items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    return next(token for token in range(_ORDINARY_TOKEN, _ORDINARY_TOKEN + len(named) + 1) if token not in named)


def _write_spans(inputs: Inputs, spans: list[tuple[int, ...]], ordinary: int) -> None:
    """Writes the spans from the second token on, with one text token before each."""
    ids, at = inputs["input_ids"], 1
    for span in spans:
        written = torch.tensor(span)
        ids[:, at : at + len(span)] = torch.where(written == SEPARATOR, ordinary, written)
        at += len(span) + 1


def _mark_placeholders(inputs: Inputs, found: list[Media]) -> None:
    """Removes placeholders from the labels. Adds token types, and Llama 3.2's cross-attention mask for each image and
    tile."""
    ids = inputs["input_ids"]
    for media in found:
        placed = ids == media.placeholder
        if inputs["labels"].shape == ids.shape:
            inputs["labels"][placed] = IGNORE
        if media.token_types:
            inputs[media.token_types] = placed.to(torch.int64)
        if "aspect_ratio_mask" in inputs:
            inputs["cross_attention_mask"] = _cross_attention_mask(ids, inputs["aspect_ratio_mask"])


def _cross_attention_mask(ids: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """[rows, tokens, images, tiles]: the tokens after the images attend to the filled tiles.

    Source: transformers `processing_mllama.py`, `convert_sparse_cross_attention_mask_to_dense`.
    """
    rows, tokens = ids.shape
    mask = tiles.unsqueeze(1).expand(rows, tokens, *tiles.shape[1:]).clone()
    mask[:, 0] = 0
    return mask


def _note_longer_rows(needed: int, row_tokens: int) -> Note:
    text = (
        f"the images or audio take {needed} tokens, more than the {row_tokens} of a row: axolotl's multimodal collator "
        "cuts no rows, so each is counted with that length"
    )
    return Note(kind="warning", key="sequence_len", text=text)
