"""Log-probabilities and entropies from hidden states, without logits of the whole batch. TRL's Liger keys select this.

Source: TRL 1.14.1 `trainer/utils.py`, `_ChunkedLogProbFunction` (plain PyTorch, no kernel of liger-kernel). A tile is 2048
tokens x 8192 entries of the vocabulary. Bytes for each element of a tile:

forward     the head's matmul 2, its fp32 copy 4, and at the peak two exponentials and their product, 4 each: **18**,
            288 MiB
backward    2 + 4, and 4 each for the probabilities, their gradient and two products with it: **22**, 352 MiB

Backward also allocates fp32 gradients: 4 N H for the hidden states, then 4 V H for the head if it trains. The head's is
allocated at once for the whole vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOKENS_OF_TILE = 2048
"""`_CHUNKED_LOGPROB_TOKEN_CHUNK_SIZE`."""
VOCABULARY_OF_TILE = 8192
"""`_CHUNKED_LOGPROB_CHUNK_SIZE` of the DPO, KTO and GRPO trainers."""


class TiledLogProbabilities(torch.autograd.Function):
    """Computes log-probabilities and entropies, both fp32 [N], from hidden [N, H], weight [V, H], bias [V] or None, and
    labels [N].

    `temperature` divides the logits, `softcap` limits them (None: no limit), `scale` multiplies them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float,
        softcap: float | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        dtype = _compute_dtype(hidden)
        tokens = hidden.shape[0]
        log_sums = torch.empty((tokens,), device=hidden.device, dtype=torch.float32)
        values = torch.empty((tokens,), device=hidden.device, dtype=torch.float32)
        entropies = torch.empty((tokens,), device=hidden.device, dtype=torch.float32)
        tile = _Tile(hidden, weight, bias, dtype, 1 / temperature, softcap, scale)
        for start in range(0, tokens, TOKENS_OF_TILE):
            end = min(start + TOKENS_OF_TILE, tokens)
            parts = _sum_over_vocabulary(tile, hidden[start:end], labels[start:end])
            log_sum = parts.highest + torch.log(parts.exponentials)
            log_sums[start:end] = log_sum
            values[start:end] = parts.picked - log_sum
            entropies[start:end] = log_sum - parts.weighted / parts.exponentials
        ctx.save_for_backward(hidden, weight, bias, labels, log_sums, entropies)
        ctx.options = dtype, 1 / temperature, softcap, scale
        return values, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        hidden, weight, bias, labels, log_sums, entropies = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        grads = [
            torch.zeros(each.shape, device=each.device, dtype=torch.float32) if needed else None
            for each, needed in zip((hidden, weight, bias), wanted, strict=True)
        ]
        tile = _Tile(hidden, weight, bias, *ctx.options)
        given, given_entropy = (each if each is None else each.to(torch.float32) for each in gradients)
        for start in range(0, hidden.shape[0], TOKENS_OF_TILE):
            rows = slice(start, min(start + TOKENS_OF_TILE, hidden.shape[0]))
            part = None if given is None else given[rows]
            entropy_part = None if given_entropy is None else (given_entropy[rows], entropies[rows])
            _add_gradients(tile, rows, labels[rows], log_sums[rows], part, entropy_part, grads)
        own = [
            grad if grad is None else grad.to(each.dtype)
            for grad, each in zip(grads, (hidden, weight, bias), strict=True)
        ]
        return (*own, None, None, None, None)


class _Tile:
    """The two buffers of a tile, which all tiles of a pass share."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        inverse_temperature: float,
        softcap: float | None,
        scale: float,
    ) -> None:
        self.hidden, self.weight, self.bias, self.dtype = hidden, weight, bias, dtype
        self.inverse_temperature, self.softcap, self.scale = inverse_temperature, softcap, scale
        shape = (min(hidden.shape[0], TOKENS_OF_TILE), VOCABULARY_OF_TILE)
        self._products = torch.empty(shape, device=hidden.device, dtype=dtype)
        self._logits = torch.empty(shape, device=hidden.device, dtype=torch.float32)
        self.bounded: Tensor | None = None
        """In backward with a soft cap: the tanh of the current tile."""

    def starts(self) -> range:
        """The positions in the vocabulary at which tiles begin."""
        return range(0, self.weight.shape[0], VOCABULARY_OF_TILE)

    def logits(self, rows: Tensor, start: int, *, backward: bool = False) -> tuple[Tensor, Tensor, int]:
        """Logits [tokens, tile] of `rows` in fp32, the head's weights of the tile, and the position where the tile ends."""
        end = min(start + VOCABULARY_OF_TILE, self.weight.shape[0])
        weight = self.weight[start:end].to(self.dtype)
        products = self._products[: rows.shape[0], : end - start]
        torch.mm(rows.to(self.dtype), weight.t(), out=products)
        if self.bias is not None:
            products.add_(self.bias[start:end].to(self.dtype))
        logits = self._logits[: rows.shape[0], : end - start]
        logits.copy_(products)
        logits.mul_(self.scale)
        if self.softcap is not None and backward:
            self.bounded = torch.tanh(logits / self.softcap)
            logits.copy_(self.bounded * self.softcap)
        elif self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        logits.mul_(self.inverse_temperature)
        return logits, weight, end


class _Sums:
    """Running sums over the vocabulary, fp32 [tokens] each."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.highest = torch.full((tokens,), float("-inf"), device=device, dtype=torch.float32)
        self.exponentials = torch.zeros((tokens,), device=device, dtype=torch.float32)
        self.weighted = torch.zeros((tokens,), device=device, dtype=torch.float32)
        self.picked = torch.zeros((tokens,), device=device, dtype=torch.float32)


def _sum_over_vocabulary(tile: _Tile, rows: Tensor, labels: Tensor) -> _Sums:
    sums = _Sums(rows.shape[0], rows.device)
    positions = torch.arange(rows.shape[0], device=rows.device)
    exponentials: Tensor | None = None
    for start in tile.starts():
        logits, _weight, end = tile.logits(rows, start)
        highest = torch.maximum(sums.highest, logits.amax(dim=-1))
        rescale = torch.exp(sums.highest - highest)
        exponentials = torch.exp(logits - highest.unsqueeze(-1))  # the previous tile's stay alive until then
        sums.exponentials = sums.exponentials * rescale + exponentials.sum(dim=-1)
        sums.weighted = sums.weighted * rescale + (exponentials * logits).sum(dim=-1)
        sums.highest = highest
        inside = (labels >= start) & (labels < end)
        sums.picked += logits[positions, torch.clamp(labels - start, 0, end - start - 1)] * inside
    return sums


def _add_gradients(
    tile: _Tile,
    rows: slice,
    labels: Tensor,
    log_sums: Tensor,
    given: Tensor | None,
    given_entropy: tuple[Tensor, Tensor] | None,
    grads: list[Tensor | None],
) -> None:
    """Adds the gradients of some tokens to those of hidden states, head and bias, one tile of the vocabulary at a
    time."""
    hidden = tile.hidden[rows].to(tile.dtype)
    positions = torch.arange(hidden.shape[0], device=hidden.device)
    probabilities: Tensor | None = None
    grad: Tensor | None = None
    for start in tile.starts():
        logits, weight, end = tile.logits(hidden, start, backward=True)
        probabilities = torch.exp(logits - log_sums.unsqueeze(-1))
        if given is None:
            grad = torch.zeros_like(probabilities)
        else:
            grad = (-given).unsqueeze(-1) * probabilities
            inside = (labels >= start) & (labels < end)
            grad[positions, torch.clamp(labels - start, 0, end - start - 1)] += given * inside
        if given_entropy is not None:
            _add_entropy_gradient(grad, probabilities, logits - log_sums.unsqueeze(-1), *given_entropy)
        grad = grad * tile.inverse_temperature
        if tile.bounded is not None:
            grad.mul_(1 - tile.bounded.pow(2))
        grad = grad * tile.scale
        if grads[0] is not None:
            grads[0][rows].add_(grad @ weight.float())
        if grads[1] is not None:
            grads[1][start:end].add_(grad.t() @ hidden.float())
        if grads[2] is not None:
            grads[2][start:end].add_(grad.sum(dim=0))


def _add_entropy_gradient(
    grad: Tensor, probabilities: Tensor, log_probabilities: Tensor, given: Tensor, entropies: Tensor
) -> None:
    grad += (-given).unsqueeze(-1) * probabilities * (log_probabilities + entropies.unsqueeze(-1))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = "cuda" if hidden.is_meta else hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
