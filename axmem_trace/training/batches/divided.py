"""The part of a batch that one rank of a context-parallel group has.

Source: ringmaster 0.2.7 `shard.py` (`prepare_global_batch`, `shard_batch`, `_zigzag_shard`), which axolotl 0.21 calls in the
collator (`integrations/context_parallel/collator.py`), or before the model's forward.
"""

from __future__ import annotations

import torch

from axmem_trace.kernels.losses.replacing import IGNORE
from axmem_trace.recipe.parallel import Context
from axmem_trace.training.batches.batch import Inputs

_LABELS = ("labels", "shift_labels")


def divide_rows(inputs: Inputs, context: Context, rank: int) -> Inputs:
    """This rank's tokens of each row: padded to equal parts, with positions of the whole row, and labels that were shifted
    in the whole row. There is no mask: attention is causal, in each sample.

    Args:
        inputs: [rows, tokens] of whole rows; what has another second dimension stays as it is.
        rank: of the run, or in the group.
    """
    rows, tokens = inputs["input_ids"].shape
    whole = {name: value for name, value in inputs.items() if name != "attention_mask"}
    if "labels" in whole and "shift_labels" not in whole:
        shifted = torch.full_like(whole["labels"], IGNORE)
        shifted[:, :-1] = whole["labels"][:, 1:]
        whole["shift_labels"] = shifted
    if "position_ids" not in whole:
        device = inputs["input_ids"].device
        whole["position_ids"] = torch.arange(0, tokens, dtype=torch.long, device=device).unsqueeze(0).expand(rows, -1)
    parts = 2 * context.size if context.head_tail else context.size
    padded = -(-tokens // parts) * parts
    whole = {name: _padded(name, value, tokens, padded) for name, value in whole.items()}
    place = rank % context.size
    return {name: _part(value, padded, place, context) for name, value in whole.items()}


def _padded(name: str, value: torch.Tensor, tokens: int, padded: int) -> torch.Tensor:
    if value.dim() < 2 or value.shape[1] != tokens or padded == tokens:
        return value
    more = padded - tokens
    if name == "position_ids":
        step = torch.arange(1, more + 1, device=value.device, dtype=value.dtype)
        return torch.cat([value, value[:, -1:] + step], dim=1)
    filler = torch.full(
        (value.shape[0], more, *value.shape[2:]),
        IGNORE if name in _LABELS else 0,
        dtype=value.dtype,
        device=value.device,
    )
    return torch.cat([value, filler], dim=1)


def _part(value: torch.Tensor, padded: int, place: int, context: Context) -> torch.Tensor:
    if value.dim() < 2 or value.shape[1] != padded:
        return value
    if not context.head_tail:
        return value.chunk(context.size, dim=1)[place].contiguous()
    half = padded // (2 * context.size)
    late = 2 * context.size - 1 - place
    starts = (place * half, late * half)
    index = torch.cat([torch.arange(start, start + half, device=value.device) for start in starts])
    return value.index_select(1, index).contiguous()
