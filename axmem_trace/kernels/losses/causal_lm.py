"""The forward of a causal language model that computes the loss from hidden states, without logits. Liger and Cut Cross
Entropy replace transformers' own forward with it.

Source: liger-kernel 0.8.1 `transformers/model/llama.py` (`lce_forward`); cut-cross-entropy `transformers/llama.py`
(`cce_forward`). The decoder runs, its first output and `lm_head.weight` are passed to the loss, and `logits` is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from axmem_trace.kernels.site import Site, head_weight
from axmem_trace.notes import Note

HiddenLoss = Callable[..., torch.Tensor]
"""`loss(hidden, weight, labels, num_items_in_batch=..., shift_labels=...)`: hidden [batch, tokens, width]."""
_LOSS_KWARGS = ("num_items_in_batch", "shift_labels")


def replace_causal_lm_loss(
    site: Site, compute: HiddenLoss, *, in_evaluation: bool, key: str, scale: Callable[..., torch.Tensor] | None = None
) -> bool:
    """Make the model's forward compute its loss from hidden states if there are labels. Returns False if it cannot.

    Args:
        in_evaluation: also in evaluation. If False, evaluation runs the model's own forward, which computes logits.
        key: the configuration's key, for notes.
        scale: applied to the hidden states first, if the architecture scales its logits.
    """
    base = site.base
    head = base.get_output_embeddings()
    decoder = base.base_model
    if head is None or decoder is base:
        text = f"{type(base).__name__} has no separate decoder and head: the fused loss is not installed"
        site.note(Note(kind="warning", key=key, text=text))
        return False
    if hasattr(head, "lora_A"):
        text = (
            "the fused loss reads the head's base weight: the LoRA adapter on lm_head has no effect and is not trained"
        )
        site.note(Note(kind="warning", key=key, text=text))
    original = base.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        has_labels = kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None
        if not has_labels or not (self.training or in_evaluation):
            return original(*args, **kwargs)
        labels = kwargs.pop("labels", None)
        loss_kwargs = {name: kwargs.pop(name) for name in _LOSS_KWARGS if name in kwargs}
        kwargs.pop("logits_to_keep", None)
        outputs = self.base_model(*args, **kwargs)
        hidden = outputs[0]
        if scale is not None:
            hidden = scale(hidden)
        loss = compute(hidden, head_weight(self.get_output_embeddings()), labels, **loss_kwargs)
        return CausalLMOutputWithPast(loss=loss, past_key_values=getattr(outputs, "past_key_values", None))

    site.replace_forward(base, forward)
    return True
