"""The routing of tokens to experts. A configuration does not show it, so it is assumed, and the report has a note.

A router computes a score of every token for every expert, and selects the best `top_k` with `torch.topk` (or, one at a time,
with `max`). In a trace the scores have no values. `Routing` chooses the resulting indices, and the recorder stores their
values. So everything that a model computes from them (masks, counts, offsets, sorted orders) has known values too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode

aten = torch.ops.aten
_TABLES = ("tid2eid",)
"""Buffers that map each token id to its experts, with values from the checkpoint: `DeepseekV4HashRouter`."""
MAX_ONE_HOT = 1 << 16
"""The largest number of elements of a one-hot mask whose values are known. `eager_loop` has rules for larger masks."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The experts of `tokens` tokens: `top_k` different experts for each.

    Balanced: token t has the experts t * top_k, t * top_k + 1, ... modulo the number of experts, so the numbers of tokens of
    two experts differ by at most one. Worst: every token goes to the same `top_k` experts. No expert can get more.
    """

    tokens: int
    top_k: int
    num_experts: int
    router: Literal["balanced", "worst"] = "balanced"

    def indices(self) -> torch.Tensor:
        """The experts of each token: [tokens, top_k], int64."""
        slots = torch.arange(self.top_k)
        if self.router == "worst":
            return slots.expand(self.tokens, self.top_k)
        return (torch.arange(self.tokens).unsqueeze(1) * self.top_k + slots) % self.num_experts

    def tokens_of(self, expert: int) -> int:
        """The number of tokens of an expert."""
        if self.router == "worst":
            return self.tokens if expert < self.top_k else 0
        share, rest = divmod(self.tokens * self.top_k, self.num_experts)
        return share + (expert < rest)

    def used_experts(self) -> int:
        """The number of experts that get at least one token. These are the first experts."""
        return self.top_k if self.router == "worst" else min(self.num_experts, self.tokens * self.top_k)


class Routing:
    """Decides the result of every choice of experts that a recorder sees. A model may have several numbers of experts.

    On meta the recorder stores the values of the indices. On a CPU, where meta is checked against a real run, they overwrite
    the indices that the model's random weights chose.
    """

    def __init__(
        self,
        expert_counts: Iterable[int],
        router: Literal["balanced", "worst"] = "balanced",
        *,
        always_known: bool = True,
        tables: Mapping[int, int] | None = None,
    ) -> None:
        self.expert_counts = frozenset(expert_counts)
        self.always_known = always_known
        """Indices always have known values, even if they are many. Needed for models that do not use the usual loop."""
        self.router: Literal["balanced", "worst"] = router
        self.tables = tables or {}
        """Storage of a table that maps token ids to experts -> the number of experts."""
        self.latest: Assignment | None = None
        """The last decision; None before the first."""

    def attach(self, recording: RecordingMode) -> None:
        """Make the recording call this object after every operator that may be a router's choice."""
        recording.decide(self._decide_topk, aten.topk.default)
        recording.decide(self._decide_max, aten.max.dim)
        recording.decide(self._decide_argmax, aten.argmax.default)
        if self.tables:
            recording.decide(self._decide_lookup, aten.index.Tensor)

    def _decide_topk(self, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        scores, dim = args[0], args[2] if len(args) > 2 else kwargs.get("dim", -1)
        if self._is_choice(scores, dim):
            self._settle(recorder, result[1], top_k=result[1].shape[-1], num_experts=scores.shape[-1])

    def _decide_max(self, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._is_choice(args[0], args[1]):
            self._settle(recorder, result[1], top_k=1, num_experts=args[0].shape[-1])

    def _decide_argmax(self, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._is_choice(args[0], args[1] if len(args) > 1 else kwargs.get("dim")):
            self._settle(recorder, result, top_k=1, num_experts=args[0].shape[-1])

    def _decide_lookup(self, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        num_experts = self.tables.get(args[0].untyped_storage()._cdata)
        if num_experts is not None:
            self._settle(recorder, result, top_k=result.shape[-1], num_experts=num_experts)

    def _is_choice(self, scores: torch.Tensor, dim: int | None) -> bool:
        """True for a choice along the last dimension, if its size is a number of experts."""
        if dim is None or not scores.ndim or dim not in (-1, scores.ndim - 1):
            return False
        return scores.dtype.is_floating_point and scores.shape[-1] in self.expert_counts

    def _settle(self, recorder: Recorder, index: torch.Tensor, *, top_k: int, num_experts: int) -> None:
        self.latest = Assignment(index.numel() // top_k, top_k, num_experts, self.router)
        if index.is_meta and not self.always_known and index.numel() * num_experts > MAX_ONE_HOT:
            return
        with recorder.paused():
            value = self.latest.indices().reshape(index.shape)
            if index.is_meta:
                recorder.values.learn(index, value)
            else:
                index.copy_(value)


def find_tables(module: nn.Module) -> dict[int, int]:
    """Storage of a table that maps token ids to experts -> the number of experts."""
    return {
        buffer.untyped_storage()._cdata: int(vars(part)["num_experts"])
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name in _TABLES
    }
