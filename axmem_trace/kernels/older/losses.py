"""Computes a loss from logits as versions of transformers 4 did, or with the in-place kernel of other trainers.

For `--assume loss_path=...` and `--assume cross_entropy=in_place`. A run of axolotl 0.19 has neither.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.kernels.losses.replacing import IGNORE, replace_loss, replace_loss_functions, with_loss
from axmem_trace.kernels.site import Site

MAX_FUSED_SIZE = 65536
"""The number of vocabulary entries that one program of the in-place kernel reduces."""


class InPlaceCrossEntropy(torch.autograd.Function):
    """A fused kernel that keeps the logits and one fp32 number per row. Backward writes the gradient into their memory.

    Source: Unsloth's `kernels/cross_entropy_loss.py`, as in fms-acceleration-foak 0.7.4 (`Fast_CrossEntropyLoss`).
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        rows, vocabulary = logits.shape
        losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
        num_chunks = -(-vocabulary // MAX_FUSED_SIZE)
        log_sums = torch.empty(rows, num_chunks, dtype=torch.float32, device=logits.device)
        if num_chunks > 1:
            log_sums = torch.logsumexp(log_sums, dim=1)
        ctx.save_for_backward(logits, log_sums, target)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        logits, _, _ = ctx.saved_tensors
        return logits, None


def in_place_cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = IGNORE,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Replaces `torch.nn.functional.cross_entropy`: computes a scalar from input [rows, vocabulary] and target [rows]."""
    losses = InPlaceCrossEntropy.apply(input, target)
    total: torch.Tensor = losses.sum()
    return total / torch.count_nonzero(target != ignore_index) if reduction == "mean" else total


def without_last(logits: torch.Tensor, whole_slices: bool) -> torch.Tensor:
    """`logits[..., :-1, :].contiguous()`: logits [batch, tokens, vocabulary] without the last token.

    With `whole_slices` the last `:` is an operator too. Its backward (`slice_backward`) copies the gradient, in the
    shape [batch, tokens - 1, vocabulary], before the other slice's backward copies it to [batch, tokens, vocabulary].
    Source: torch 2.4.1 `csrc/autograd/python_variable_indexing.cpp`, run on its CUDA build without a GPU; torch 2.13 returns
    the tensor itself for `:`.
    """
    shorter = logits[..., :-1, :]
    if whole_slices:
        shorter = torch.ops.aten.slice(shorter, logits.dim() - 1, 0, logits.shape[-1])
    return shorter.contiguous()


def shifted_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: Any, *, whole_slices: bool = False
) -> torch.Tensor:
    """Cross-entropy of a contiguous copy of the logits without the last token, in their own dtype.

    logits [batch, tokens, vocabulary], labels [batch, tokens]; `num_items` None: the mean.
    """
    shifted = without_last(logits, whole_slices).view(-1, logits.shape[-1])
    targets = labels[..., 1:].contiguous().view(-1)
    loss = F.cross_entropy(shifted, targets, ignore_index=IGNORE, reduction="mean" if num_items is None else "sum")
    return loss if num_items is None else loss / num_items


def half_shifted_copy(
    original: Any, labels: torch.Tensor, num_items: Any, kwargs: dict[str, Any], *, whole_slices: bool = False
) -> Any:
    """A forward that never upcasts its logits: GPT-BigCode and other old models until transformers 4.49
    (`modeling_gpt_bigcode.py`, `GPTBigCodeForCausalLM.forward`)."""
    outputs = original(**kwargs)
    return with_loss(outputs, shifted_loss(outputs["logits"], labels, num_items, whole_slices=whole_slices))


def upcast_shifted_copy(
    original: Any, labels: torch.Tensor, num_items: Any, kwargs: dict[str, Any], *, whole_slices: bool = False
) -> Any:
    """A forward that returns fp32 logits, as transformers until 4.45 did (`modeling_llama.py`,
    `LlamaForCausalLM.forward`: `logits = logits.float()`). The half-precision logits are freed before the loss begins."""
    outputs = original(**kwargs)
    outputs["logits"] = outputs["logits"].float()
    return with_loss(outputs, shifted_loss(outputs["logits"], labels, num_items, whole_slices=whole_slices))


def shifted_copy_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = IGNORE,
    *,
    whole_slices: bool = False,
    **kwargs: Any,
) -> torch.Tensor:
    """`ForCausalLMLoss` of transformers 4.46 to 4.50 (`loss/loss_utils.py`): all logits in fp32, then a contiguous copy
    of them without the last token. Computes a scalar from logits [batch, tokens, vocabulary]."""
    from transformers.loss.loss_utils import fixed_cross_entropy

    logits = logits.float()
    shifted = without_last(logits, whole_slices)
    targets = labels[..., 1:].contiguous()
    shifted = shifted.view(-1, vocab_size)
    loss: torch.Tensor = fixed_cross_entropy(shifted, targets.view(-1), num_items_in_batch, ignore_index)
    return loss


def _install_shifted_copy(site: Site) -> None:
    loss = partial(shifted_copy_loss, whole_slices=site.recipe.older.whole_slices)
    replace_loss_functions(site, loss, "ForCausalLM", "ForConditionalGeneration")


def _install_upcast_shifted_copy(site: Site) -> None:
    _install_loss_in_forward(site, partial(upcast_shifted_copy, whole_slices=site.recipe.older.whole_slices))


def _install_half_shifted_copy(site: Site) -> None:
    _install_loss_in_forward(site, partial(half_shifted_copy, whole_slices=site.recipe.older.whole_slices))


def _install_loss_in_forward(site: Site, run: Callable[..., Any]) -> None:
    """Install a loss that the model's own forward computes while a variable still keeps the last hidden states."""
    hidden: list[torch.Tensor] = []
    head = site.base.get_output_embeddings()
    site.stack.callback(head.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0])).remove)

    def run_holding_hidden(*arguments: Any) -> Any:
        try:
            return run(*arguments)
        finally:
            hidden.clear()

    replace_loss(site, run_holding_hidden)


OLDER_LOSSES: dict[str, Callable[[Site], None]] = {
    "shifted_copy": _install_shifted_copy,
    "upcast_shifted_copy": _install_upcast_shifted_copy,
    "half_shifted_copy": _install_half_shifted_copy,
}
"""`loss.path` -> its installer."""
