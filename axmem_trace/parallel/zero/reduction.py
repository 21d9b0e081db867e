"""ZeRO-1 and 2: how a bucket of gradients is reduced across the ranks, with DeepSpeed's temporary tensors.

Source: deepspeed 0.19.8 `runtime/zero/stage_1_and_2.py` `average_tensor`, `gradient_reduction_w_predivide`,
`allreduce_and_scatter`, `allreduce_no_retain`, `allreduce_bucket`, `buffered_reduce_fallback`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from axmem_trace.parallel.zero.layout import Slice, joined
from axmem_trace.recipe.parallel import Zero
from axmem_trace.tracing.recorder import Recorder


class Reduction:
    """The reduction of one rank's buckets.

    Args:
        bucket_elements: `reduce_bucket_size`.
        dtype: that of the buckets.
    """

    def __init__(
        self,
        zero: Zero,
        recorder: Recorder,
        *,
        bucket_elements: int,
        dtype: torch.dtype,
        rank: int,
        num_ranks: int,
    ) -> None:
        self._zero, self._recorder, self._bucket_elements, self._dtype = zero, recorder, bucket_elements, dtype
        self._rank, self._num_ranks = rank, num_ranks
        self._accelerator: Any = torch.meta  # type: ignore[attr-defined]
        self._stream = self._accelerator.Stream() if zero.overlaps else None

    def on_stream(self) -> Any:
        """While open, blocks are allocated on the reduction's stream."""
        return self._accelerator.stream(self._stream)

    def average(self, tensor: torch.Tensor, slices: Sequence[Slice]) -> None:
        """`average_tensor`: on the reduction stream, if there is one. `slices` name the owner of each range of the
        tensor."""
        if self._stream is not None:
            self._stream.wait_stream(self._accelerator.current_stream())
            self._accelerator.current_stream().wait_stream(self._stream)
        with self.on_stream():
            if not self._zero.reduce_scatter:
                self._all_reduce(tensor)
                return
            tensor.div_(self._num_ranks)
            begin, runs = 0, []
            for owner, elements in joined(slices):
                runs.append((owner, tensor.narrow(0, begin, elements)))
                begin += elements
            if self._zero.reduces_together:
                self._scatter(runs)
            else:
                for owner in dict.fromkeys(owner for owner, _ in runs):
                    self._scatter([run for run in runs if run[0] == owner], to=owner)

    def _all_reduce(self, tensor: torch.Tensor) -> None:
        """`gradient_reduction_w_predivide`."""
        sent = tensor.to(self._communication_dtype)
        dist.all_reduce(sent)
        sent.mul_(1.0 / self._num_ranks)
        if sent is not tensor:
            tensor.copy_(sent)

    @property
    def _communication_dtype(self) -> torch.dtype:
        named: torch.dtype = (
            getattr(torch, self._zero.communication_dtype) if self._zero.communication_dtype else self._dtype
        )
        return named

    def _scatter(self, runs: Sequence[tuple[int, torch.Tensor]], to: int | None = None) -> None:
        """`allreduce_and_scatter`; with an owner `to`, `allreduce_no_retain`, which reduces only to this owner."""
        part: list[tuple[int, torch.Tensor]] = []
        elements = 0
        for run in runs:
            part.append(run)
            elements += run[1].numel()
            if elements > self._bucket_elements:
                self._exchange(part, to)
                part, elements = [], 0
        if part:
            self._exchange(part, to)

    def _exchange(self, part: Sequence[tuple[int, torch.Tensor]], to: int | None) -> None:
        """Makes one tensor of the slices, reduces it, and copies the slices of this rank back."""
        pieces = [piece for _, piece in part]
        if to is not None and self._stream is not None:
            self.synchronise()
        with self.on_stream() if to is not None else nullcontext():
            flat = _flatten_dense_tensors(pieces)
            sent = flat.to(self._communication_dtype)
            if to is None:
                dist.all_reduce(sent)
            else:
                dist.reduce(sent, to)
            if sent is not flat:
                flat.copy_(sent)
            if self._stream is not None:
                sent.record_stream(self._stream)
            for (owner, piece), reduced in zip(part, _unflatten_dense_tensors(sent, pieces), strict=True):
                if owner == self._rank:
                    piece.copy_(reduced)
                    if self._stream is not None:
                        piece.record_stream(self._stream)

    def reduce_separate(self, gradients: Sequence[torch.Tensor]) -> None:
        """`buffered_reduce_fallback`: without `contiguous_gradients`, all gradients of a bucket are copied into one
        tensor."""
        with self.on_stream():
            flat = _flatten_dense_tensors(gradients)
            sent = flat.to(self._communication_dtype)
            sent.div_(self._num_ranks)
            dist.all_reduce(sent)
            if sent is not flat:
                flat.copy_(sent)
            for gradient, reduced in zip(gradients, _unflatten_dense_tensors(sent, gradients), strict=True):
                gradient.copy_(reduced)
                if self._stream is not None:
                    gradient.record_stream(self._stream)

    def synchronise(self) -> None:
        """The host waits for the GPU."""
        self._accelerator.synchronize()
        self._recorder.finish_streams()
