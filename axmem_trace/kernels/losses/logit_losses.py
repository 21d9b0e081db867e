"""The loss paths that start from logits: transformers 4's shifted copies, chunked cross-entropy, EAFT; distillation.

Nothing is installed for `native`: the installed transformers computes the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.kernels.losses import flash_loss
from axmem_trace.kernels.losses.distillation import distillation_loss
from axmem_trace.kernels.losses.replacing import IGNORE, replace_loss, replace_loss_functions, with_loss
from axmem_trace.kernels.older.losses import OLDER_LOSSES, in_place_cross_entropy
from axmem_trace.kernels.site import Site, head_weight
from axmem_trace.notes import Note
from axmem_trace.recipe.run import Batch
from axmem_trace.units import format_bytes

EAFT_TOP_K = 20
"""`eaft_k`'s default (axolotl `core/builders/causal.py`)."""


def install_loss_path(site: Site) -> None:
    """Replace the loss function or the model's forward by `recipe.loss.path`."""
    if site.recipe.loss.cross_entropy == "in_place":
        site.replace_attribute(F, "cross_entropy", in_place_cross_entropy)
    elif site.recipe.loss.cross_entropy == "flash":
        _install_flash(site)
    install = _INSTALLERS.get(site.recipe.loss.path)
    if install is not None:
        install(site)


def _install_flash(site: Site) -> None:
    from transformers.loss import loss_utils

    site.replace_attribute(loss_utils, "fixed_cross_entropy", flash_loss.fixed_cross_entropy)
    text = "flash-attn 2.8's cross-entropy keeps the fp32 logits and allocates their gradient too; no softmax is kept"
    site.note(Note(kind="ruled", key="flash_attn_cross_entropy", text=text))


# -- functions in transformers' loss mapping --------------------------------------------------------------------------


def make_chunked_loss(num_chunks: int) -> Callable[..., torch.Tensor]:
    """axolotl 0.19 `monkeypatch/loss/chunked.py` (`for_causal_lm_chunked_loss`): chunks along the tokens.

    With more than one row, a chunk's rows are not contiguous. So `reshape` copies every chunk before the first loss.
    """

    def chunked_loss(
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Any = None,
        ignore_index: int = IGNORE,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if shift_labels is None:
            labels = F.pad(labels, (0, 1), value=ignore_index)
            shift_labels = labels[..., 1:].contiguous()
        num_valid = (shift_labels != ignore_index).sum()
        targets = [chunk.reshape(-1) for chunk in shift_labels.chunk(num_chunks, dim=1)]
        chunks = [chunk.reshape(-1, chunk.size(-1)) for chunk in logits.chunk(num_chunks, dim=1)]
        total: Any = 0.0
        for chunk, target in zip(chunks, targets, strict=True):
            total = total + CompiledChunkLoss.apply(chunk, target, ignore_index)
        scaled: torch.Tensor = total / (num_valid if num_items_in_batch is None else num_items_in_batch)
        return scaled

    return chunked_loss


class CompiledChunkLoss(torch.autograd.Function):
    """`F.cross_entropy(logits.float(), ...)` with torch.compile: one kernel reads the logits in their dtype. It keeps two
    fp32 numbers per row, maximum and logarithm of the sum. Backward computes the gradient in the logits' dtype.

    Inductor fuses the upcast, and its partitioner recomputes the softmax from the two (torch
    `_functorch/partitioners.py` `min_cut_rematerialization_partition`).
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, ignore_index: int) -> torch.Tensor:
        maximum, log_sum = (torch.empty(logits.shape[0], 1, dtype=torch.float32, device=logits.device) for _ in "12")
        ctx.save_for_backward(logits, target, maximum, log_sum)
        return torch.zeros((), dtype=torch.float32, device=logits.device)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        logits, *_ = ctx.saved_tensors
        return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device), None, None


def _install_chunked(site: Site) -> None:
    replace_loss_functions(site, make_chunked_loss(site.recipe.loss.num_chunks), "ForCausalLM")


# -- losses outside of the model --------------------------------------------------------------------------------------


def eaft_loss(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """axolotl 0.19 `monkeypatch/loss/eaft.py`: a shifted copy; then rows with labels are selected twice, each time as a
    full copy.

    logits [batch, tokens, vocabulary], in fp32 if accelerate has converted them. Every token is assumed to have a label.
    """
    shifted = logits[..., :-1, :].contiguous()
    targets = labels[..., 1:].contiguous().view(-1)
    rows = shifted.view(-1, shifted.size(-1))
    mask = targets != IGNORE
    with torch.no_grad():
        picked = rows.index_select(0, _indices(mask)).float()
        top, _ = torch.topk(picked, k=min(EAFT_TOP_K, rows.size(-1)), dim=-1)
        del picked
        probabilities = F.softmax(top, dim=-1)
        entropy = -(probabilities * torch.log(probabilities + 1e-10)).sum(dim=-1)
        weights = torch.pow(entropy, 1.0)
    chosen = rows.index_select(0, _indices(mask))
    per_token = F.cross_entropy(chosen, targets.index_select(0, _indices(mask)), reduction="none")
    del chosen
    weighted = per_token * weights
    return weighted.mean() if num_items_in_batch is None else weighted.sum() / num_items_in_batch


def _indices(mask: torch.Tensor) -> torch.Tensor:
    """The indices of `tensor[mask]`: the int64 result of `nonzero`, here for a mask without zeros."""
    return torch.arange(mask.numel(), device=mask.device)


def _install_eaft(site: Site) -> None:
    def run(original: Callable[..., Any], labels: torch.Tensor, num_items: Any, kwargs: dict[str, Any]) -> Any:
        outputs = _as_accelerate(site, original(**kwargs))
        with torch.autocast("cuda", enabled=False):
            loss = eaft_loss(outputs["logits"], labels, num_items)
        return with_loss(outputs, loss)

    replace_loss(site, run)


def _install_distillation(site: Site) -> None:
    """`AxolotlKDTrainer.compute_loss`: the model returns all hidden states, and accelerate copies them to fp32."""

    def run(original: Callable[..., Any], labels: torch.Tensor, num_items: Any, kwargs: dict[str, Any]) -> Any:
        outputs = _as_accelerate(site, original(**kwargs, output_hidden_states=True, logits_to_keep=1))
        weight = head_weight(site.base.get_output_embeddings())
        with torch.autocast("cuda", enabled=False):
            hidden = outputs["hidden_states"][-1].to(weight.dtype)
            loss = distillation_loss(hidden, weight, labels)
        return with_loss(outputs, loss if num_items is None else loss / num_items)

    if not site.recipe.loss.teacher_tokens:
        site.note(_note_teacher(site.recipe.batch))
    replace_loss(site, run)


TEACHER_TOKEN_BYTES = 16
"""Bytes for each of the teacher's k tokens at each position: its id in int64, log-probability in fp32, mask in int32
(axolotl 0.21 `integrations/kd/collator.py`)."""
MOST_TEACHER_TOKENS = 128
"""An upper bound of the teacher's tokens at each position. The number is only in the data, and is usually smaller."""


def _note_teacher(batch: Batch) -> Note:
    positions = batch.rows * batch.row_tokens * batch.gradient_accumulation_steps
    nbytes = positions * TEACHER_TOKEN_BYTES * MOST_TEACHER_TOKENS
    text = (
        f"the teacher's k tokens at each position of a step's batches are not in the figures: "
        f"{format_bytes(positions * TEACHER_TOKEN_BYTES)} for each of the k tokens. k is only in the data; the verdict "
        f"assumes at most {MOST_TEACHER_TOKENS}"
    )
    return Note(kind="not_modelled", key="kd_trainer", text=text, direction="more", at_most_bytes=nbytes)


def _install_none(site: Site) -> None:
    """No loss: the caller runs backward from the logits."""

    def run(original: Callable[..., Any], labels: torch.Tensor, num_items: Any, kwargs: dict[str, Any]) -> Any:
        outputs = original(**kwargs)
        return with_loss(outputs, outputs["logits"].new_zeros(()))

    replace_loss(site, run)


def _as_accelerate(site: Site, outputs: Any) -> Any:
    """accelerate wraps the model's forward, so a loss outside of the model gets fp32 outputs."""
    if site.recipe.precision.output_dtype != "float32":
        return outputs
    from accelerate.utils.operations import convert_to_fp32

    return convert_to_fp32(outputs)


_INSTALLERS: dict[str, Callable[[Site], None]] = {
    "chunked": _install_chunked,
    "eaft": _install_eaft,
    "kd": _install_distillation,
    "none": _install_none,
    **OLDER_LOSSES,
}
