"""Text generation in training with transformers' `generate`: the first pass, and the last pass, which is the largest.

Source: transformers 5.20 `generation/utils.py` `_prefill`, `_sample`, `generation/logits_process.py`, `cache_utils.py`
`DynamicLayer.update`; TRL 1.14.1 `trainer/grpo_trainer.py` `_generate_single_turn`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from axmem_trace.models.built import unwrapped
from axmem_trace.recipe.objective import Rollouts
from axmem_trace.tracing.recorder import Recorder


@torch.no_grad()
def generate_completions(
    forward: Callable[..., Any],
    model: Any,
    recorder: Recorder,
    settings: Rollouts,
    *,
    rows: int,
    prompt_tokens: int,
    completion_tokens: int,
) -> None:
    """Runs the pass over the prompts and the pass for the last token, each with its sampling.

    Every pass replaces a layer's keys and values by a longer copy, one layer after the other. So the last pass needs
    the most memory. The passes between are not run; the cache gets the length that it would have after them.

    Args:
        forward: the function that `generate` calls.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=unwrapped(model).config.get_text_config())
    # transformers 5.24 renames `past_key_values` to `cache`; a model accepts one of the two.
    options = _accepted(model, logits_to_keep=1, use_cache=True, past_key_values=cache, cache=cache)
    last = prompt_tokens + completion_tokens - 2
    for is_prompt in (True, False)[: 1 + (completion_tokens > 1)]:
        if not is_prompt:
            lengthen(cache, last)
        positions = torch.arange(prompt_tokens) if is_prompt else torch.tensor([last])
        placed = _accepted(model, position_ids=recorder.place(positions.repeat(rows, 1)))
        ids = recorder.place(torch.ones(rows, len(positions), dtype=torch.int64))
        mask = recorder.place(_left_padded(rows, prompt_tokens if is_prompt else last + 1))
        outputs = forward(input_ids=ids, attention_mask=mask, **placed, **options)
        # variables of `_sample`: tensors of a pass are alive until the next pass assigns the variables
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        scores = _processed(logits, settings)
        chances = torch.nn.functional.softmax(scores, dim=-1)
        torch.multinomial(chances, num_samples=1)
        del outputs


def _left_padded(rows: int, tokens: int) -> Tensor:
    """A mask [rows, tokens] with one padded position. `generate` drops a mask without padding, but real prompts have
    different lengths."""
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    mask[-1, 0] = 0
    return mask


def lengthen(cache: Any, tokens: int) -> None:
    """Replaces the keys and values by those of `tokens` tokens, or of as many as a layer with a window keeps."""
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        if not isinstance(keys, Tensor) or keys.ndim != 4:
            continue
        window = getattr(layer, "sliding_window", None)
        length = min(tokens, window - 1) if window else tokens
        shapes = [(*each.shape[:2], length, each.shape[3]) for each in (layer.keys, layer.values)]
        layer.keys = layer.values = None
        layer.keys, layer.values = (keys.new_zeros(shape) for shape in shapes)
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = tokens


def _processed(scores: Tensor, settings: Rollouts) -> Tensor:
    """Applies the processors that the settings select, in the library's order. Without processors, the scores are
    returned unchanged."""
    if settings.temperature != 1.0:
        scores = scores / settings.temperature
    if settings.top_k:
        scores = _of_highest(scores, settings.top_k)
    return _of_largest_share(scores, settings.top_p) if settings.top_p < 1.0 else scores


def _of_highest(scores: Tensor, count: int) -> Tensor:
    """`TopKLogitsWarper`."""
    removed = scores < torch.topk(scores, min(count, scores.shape[-1]))[0][..., -1, None]
    return scores.masked_fill(removed, -float("inf"))


def _of_largest_share(scores: Tensor, share: float) -> Tensor:
    """`TopPLogitsWarper`: masks all tokens except the most likely ones, whose probabilities have the sum `top_p`.
    Tensors in local variables are alive until it returns."""
    values, indices = torch.sort(scores, descending=False)
    sums = values.softmax(dim=-1).cumsum(dim=-1)
    unlikely = sums <= (1 - share)
    unlikely[..., -1:] = 0
    removed = unlikely.scatter(1, indices, unlikely)
    return scores.masked_fill(removed, -float("inf"))


def _accepted(model: Any, **options: Any) -> dict[str, Any]:
    """The options that the model's forward accepts."""
    parameters = inspect.signature(unwrapped(model).forward).parameters
    return {name: value for name, value in options.items() if name in parameters}
