"""Log-probabilities of given tokens, and entropies: TRL's Triton kernel, and its plain PyTorch code.

`selective_log_softmax` and similar functions choose the Triton kernel on a GPU, and PyTorch without a warning elsewhere.
So a trace of TRL on meta would run the wrong code. Source: TRL 1.14.1 `kernels/logprob_entropy.py`
(`_LogProbEntropyFunction`), `trainer/utils.py` (`_supports_trl_loss_kernel`, `selective_log_softmax`,
`entropy_from_logits`, `selective_log_softmax_and_entropy`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from axmem_trace.recipe.objective import Objective

ENTROPY_ROWS = 128
"""TRL `entropy_from_logits`, `chunk_size`: tokens whose softmax exists at the same time."""


class LogProbabilities(Protocol):
    """Computes fp32 values [rows, tokens] from logits [rows, tokens, vocabulary] and labels [rows, tokens].

    A value is zero if its mask is zero.
    """

    def select(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """Each label's log-probability; the logits are divided by the temperature first."""
        ...

    def select_with_entropy(
        self,
        logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        *,
        entropy_trains: bool = False,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Each label's log-probability, and the entropy of its logits."""
        ...


class TritonLogProbabilities:
    """TRL's kernel: one pass over the logits divides by the temperature and returns both values."""

    def select(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """See `LogProbabilities`."""
        return _FusedLogProbEntropy.apply(logits, labels, mask)[0]

    def select_with_entropy(
        self,
        logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        *,
        entropy_trains: bool = False,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """See `LogProbabilities`."""
        values, entropies = _FusedLogProbEntropy.apply(logits, labels, mask)
        return values, entropies if entropy_trains else entropies.detach()


class _FusedLogProbEntropy(torch.autograd.Function):
    """Memory of TRL's kernel; its values are not computed.

    Allocates four fp32 numbers for each token, and returns two of them. Keeps the input logits for backward (a view is
    not copied). Backward writes one dense gradient in their dtype.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        values = torch.empty(logits.shape[:-1], device=logits.device, dtype=torch.float32)
        entropies, log_sums, means = (torch.empty_like(values) for _ in range(3))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, labels, log_sums, means, mask)
        return values, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        logits = ctx.saved_tensors[0]
        made = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for gradient in gradients:
            if gradient is not None:
                gradient.contiguous()
        return made, None, None


class AxolotlLogProbabilities:
    """axolotl 0.19's own Triton kernels, which replace TRL 1.9's functions.

    Logits that are not dense are copied, and the copy is kept for backward. Logits of several rows without the last
    position are not dense.

    Source: axolotl 0.19.0 `monkeypatch/trainer/utils.py`, `selective_log_softmax`, `_SelectiveLogSoftmaxTriton`,
    `entropy_from_logits` (which copies nothing), installed by `loaders/patch_manager.py`.
    """

    def select(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """See `LogProbabilities`."""
        size = logits.shape[-1]
        flat = logits.view(-1, size) if logits.is_contiguous() else logits.reshape(-1, size).contiguous()
        found = _AxolotlSelect.apply(flat, labels.reshape(-1, 1).contiguous())
        values = found.reshape(labels.shape)
        return values if mask is None else values.masked_fill(mask == 0, 0.0)

    def select_with_entropy(
        self,
        logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        *,
        entropy_trains: bool = False,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """See `LogProbabilities`. The entropy's operator has no gradient."""
        values = self.select(logits, labels, mask)
        entropies = torch.empty(labels.numel(), device=logits.device, dtype=torch.float32)
        return values, entropies.reshape(labels.shape)


class _AxolotlSelect(torch.autograd.Function):
    """Memory of the kernel: fp32 values [N, 1] and sums [N]; backward writes a gradient as large as the flat logits."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, labels: Tensor) -> Tensor:
        values = torch.empty(labels.shape, device=flat.device, dtype=torch.float32)
        sums = torch.empty(flat.shape[0], device=flat.device, dtype=torch.float32)
        ctx.save_for_backward(flat, labels, sums)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flat = ctx.saved_tensors[0]
        made = torch.empty_like(flat)
        gradients[0].contiguous()
        return made, None


class TorchLogProbabilities:
    """TRL's own PyTorch code, which runs without Triton."""

    def select(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """See `LogProbabilities`."""
        logits = _cooled(logits, temperature)
        indices = labels.unsqueeze(-1)
        if logits.dtype in (torch.float32, torch.float64):
            picked = torch.gather(logits, dim=-1, index=indices)
            sums = torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
            values = picked - sums.unsqueeze(-1)
        else:
            values = torch.stack([_log_softmax_of(row, index) for row, index in zip(logits, indices, strict=True)])
        values = values.squeeze(-1)
        return values if mask is None else values.masked_fill(mask == 0, 0.0)

    def select_with_entropy(
        self,
        logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        *,
        entropy_trains: bool = False,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """See `LogProbabilities`."""
        logits = _cooled(logits, temperature)
        values = self.select(logits, labels, mask)
        with torch.set_grad_enabled(entropy_trains and torch.is_grad_enabled()):
            entropies = entropy_in_parts(logits)
        return values, entropies if mask is None else entropies.masked_fill(mask == 0, 0.0)


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def _log_softmax_of(row: Tensor, index: Tensor) -> Tensor:
    values = F.log_softmax(row, dim=-1)
    return values.gather(dim=-1, index=index)


def entropy_in_parts(logits: Tensor) -> Tensor:
    """The entropy [rows, tokens] of logits [rows, tokens, vocabulary], `ENTROPY_ROWS` tokens at a time.

    `reshape` copies logits that are not dense, such as those without the last position.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    parts = []
    for chunk in flat.split(ENTROPY_ROWS, dim=0):
        values = F.log_softmax(chunk, dim=-1)
        part = -(torch.exp(values) * values).sum(-1)
        parts.append(part)
    return torch.cat(parts, dim=0).reshape(logits.shape[:-1])


def choose_log_probabilities(objective: Objective) -> LogProbabilities:
    """The code that the recipe selects."""
    kinds: dict[str, type[LogProbabilities]] = {
        "trl": TritonLogProbabilities,
        "axolotl": AxolotlLogProbabilities,
        "torch": TorchLogProbabilities,
    }
    return kinds[objective.helpers]()
