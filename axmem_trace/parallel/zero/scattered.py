"""ZeRO-3 in backward: gradients are copied into a bucket. Each rank gets its part of the reduced gradients and drops
the rest.

Source: deepspeed 0.19.8 `runtime/zero/stage3.py` `reduce_independent_p_g_buckets_and_remove_grads`,
`__add_grad_to_ipg_bucket`, `__reduce_and_partition_ipg_grads`, `__avg_scatter_grads`, `partition_grads`;
`runtime/comm/coalesced_collectives.py` `reduce_scatter_coalesced`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from axmem_trace.parallel.zero.parts import Part
from axmem_trace.recipe.parallel import Zero
from axmem_trace.tracing.recorder import Recorder

MAX_REDUCE_EVENTS = 2
"""`max_param_reduce_events`: before a third reduction, the host waits."""
Send = Callable[[Part, torch.Tensor], None]


class Scattered:
    """The reduction of one rank's gradients.

    Args:
        sums: by parameter, the tensor in which this rank's part of its gradient is accumulated.
        accumulation_dtype: that of `sums`.
        communication_dtype: that of the bucket and of the reduction.
        send: called in the last micro-batch with a part that is copied to the host; None: it stays in `sums`.
        on_host: whether `sums` are on the host.
    """

    def __init__(
        self,
        zero: Zero,
        recorder: Recorder,
        sums: Mapping[Part, torch.Tensor],
        *,
        bucket_elements: int,
        dtype: torch.dtype,
        communication_dtype: torch.dtype,
        device: torch.device,
        send: Send | None = None,
    ) -> None:
        self._zero, self._sums, self._send = zero, sums, send
        self._bucket_elements, self._dtype, self._device = bucket_elements, dtype, device
        self._communication_dtype = communication_dtype
        self._accelerator: Any = torch.meta  # type: ignore[attr-defined]
        self._stream = self._accelerator.Stream() if zero.overlaps else self._accelerator.default_stream()
        self._rank, self._num_ranks = dist.get_rank(), dist.get_world_size()
        self._members: list[Part] = []
        self._elements = 0
        self._events: deque[Any] = deque()
        self._buffer: torch.Tensor | None = None
        if zero.contiguous_gradients:
            with recorder.as_role("workspace", "reduce_scatter"):
                self._buffer = torch.empty(bucket_elements, dtype=communication_dtype, device=device)
        self.micro_step = 0
        self.is_boundary = True

    def watch(self, parts: Sequence[Part]) -> None:
        """Adds hooks, which handle each gradient as soon as backward has accumulated it."""
        for part in parts:
            part.parameter.register_post_accumulate_grad_hook(self._hook(part))

    def _hook(self, part: Part) -> Callable[[torch.Tensor], None]:
        def arrived(parameter: Any) -> None:
            self.collect(part)

        return arrived

    @torch.no_grad()
    def collect(self, part: Part) -> None:
        """Copies a gradient into the bucket. If it does not fit, the bucket is reduced before."""
        if self._elements + part.numel > self._bucket_elements and self._elements > 0:
            self.reduce()
        self._stream.wait_stream(self._accelerator.current_stream())
        gradient = part.parameter.grad
        assert gradient is not None
        if self._buffer is not None and self._elements + gradient.numel() <= self._bucket_elements:
            with self._accelerator.stream(self._stream):
                place = self._buffer.narrow(0, self._elements, gradient.numel()).view_as(gradient)
                place.copy_(gradient)
                gradient.record_stream(self._accelerator.current_stream())
                gradient.data = place
        self._members.append(part)
        self._elements += part.numel

    @torch.no_grad()
    def reduce(self) -> None:
        """Reduces the bucket's gradients and drops them."""
        if not self._members:
            return
        if len(self._events) > MAX_REDUCE_EVENTS:
            self._events.popleft().synchronize()
        with self._accelerator.stream(self._stream):
            if self._buffer is not None and self._elements <= self._bucket_elements and not self._zero.reduce_scatter:
                pieces = self._reduce_whole(self._buffer.narrow(0, 0, self._elements))
            else:
                self._members.sort(key=lambda part: part.number)
                pieces = self._scatter()
            self._keep(pieces)
            self._members.clear()
            self._elements = 0
            self._events.append(self._accelerator.current_stream().record_event())

    def _scatter(self) -> list[torch.Tensor]:
        gradients: list[torch.Tensor] = [_gradient(part) for part in self._members]
        if self._communication_dtype != self._dtype:
            gradients = [each.to(self._communication_dtype) for each in gradients]
        pieces = _reduce_scatter(gradients, self._rank, self._num_ranks)
        wanted = next(iter(self._sums.values())).dtype
        if self._communication_dtype != wanted:
            pieces = [each.to(wanted) for each in pieces]
        return pieces

    def _reduce_whole(self, bucket: torch.Tensor) -> list[torch.Tensor]:
        """`__avg_scatter_contiguous_grads`."""
        bucket.div_(self._num_ranks)
        dist.all_reduce(bucket)
        bucket = bucket.mul(1.0)
        wanted = next(iter(self._sums.values())).dtype
        if bucket.dtype != wanted:
            bucket = bucket.to(wanted)
        pieces, begin = [], 0
        for part in self._members:
            first = begin + min(self._rank * part.elements, part.numel)
            last = begin + min(self._rank * part.elements + part.elements, part.numel)
            piece = bucket[first:last]
            if piece.numel() != part.elements:
                padded = torch.zeros(part.elements, device=bucket.device, dtype=wanted)
                if piece.numel():
                    padded[: piece.numel()] = piece
                piece = padded
            pieces.append(piece)
            begin += part.numel
        return pieces

    def _keep(self, pieces: Sequence[torch.Tensor]) -> None:
        """`partition_grads`."""
        for part, piece in zip(self._members, pieces, strict=True):
            parameter = part.parameter
            if part.elements * self._rank < part.numel:
                self._add(part, piece)
                if parameter.grad is not None:
                    parameter.grad.record_stream(self._accelerator.current_stream())
            parameter.grad = None

    def _add(self, part: Part, piece: torch.Tensor) -> None:
        total = self._sums[part].narrow(0, 0, piece.numel())
        if self._send is None:
            if self.micro_step == 0:
                total.copy_(piece)
            else:
                total.add_(piece.to(total.dtype).view(total.shape))
            return
        on_gpu = torch.empty(piece.shape, dtype=total.dtype, device=self._device)
        if self.micro_step:
            on_gpu.add_(piece.to(total.dtype))
        if self.is_boundary:
            self._send(part, on_gpu)

    def finish(self) -> None:
        """After each backward."""
        self.reduce()
        self._stream.synchronize()


def _gradient(part: Part) -> torch.Tensor:
    assert part.parameter.grad is not None
    return part.parameter.grad


def _reduce_scatter(gradients: Sequence[torch.Tensor], rank: int, num_ranks: int) -> list[torch.Tensor]:
    """Puts the ranks' parts one after the other into one tensor. A single gradient that divides evenly is not
    copied."""
    chunks = [-(-each.numel() // num_ranks) for each in gradients]
    flat = [each.view(-1) for each in gradients]
    if len(gradients) == 1 and gradients[0].numel() % num_ranks == 0:
        together = flat[0]
    else:
        pieces = []
        for owner in range(num_ranks):
            for tensor, size in zip(flat, chunks, strict=True):
                piece = tensor[owner * size : owner * size + size]
                pieces.append(piece)
                if piece.numel() < size:
                    pieces.append(torch.empty(size - piece.numel(), dtype=piece.dtype, device=piece.device))
        together = torch.cat(pieces)
        del pieces
    together.div_(num_ranks)
    own = torch.chunk(together, num_ranks)[rank]
    _reduce_scatter_tensor(own, together)
    found, begin = [], 0
    for tensor, size in zip(flat, chunks, strict=True):
        found.append(own.narrow(0, begin, min(size, max(0, tensor.numel() - rank * size))))
        begin += size
    return found


_reduce_scatter_tensor = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
