"""ZeRO-3: this rank has a part of each parameter. A parameter is whole only while it is gathered.

Source: deepspeed 0.19.8 `runtime/zero/partition_parameters.py` `Init`, `free_param`, `_partition_param`,
`_all_gather_sequential`, `_all_gather_dtype`, `AllGatherCoalescedHandle`, `_allgather_params_coalesced`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from axmem_trace.parallel.host import HostMemory
from axmem_trace.tracing.recorder import Recorder

NOT_AVAILABLE, IN_FLIGHT, AVAILABLE = "not available", "in flight", "available"


@dataclass(eq=False)
class Part:
    """A parameter under ZeRO-3.

    Attributes:
        number: parameters are gathered in this order.
        tensor: this rank's part, flat; its memory is on the host if `on_host`.
        elements: the number of elements of the part; it is the same on each rank.
        status: whether the parameter is whole.
        users: the modules that are using the parameter now.
        persists: whether it stays whole between steps (`stage3_param_persistence_threshold`).
        is_external: whether a module that does not own it uses it.
    """

    parameter: nn.Parameter
    number: int
    shape: torch.Size
    tensor: torch.Tensor | None = None
    on_host: bool = False
    status: str = AVAILABLE
    users: set[int] = field(default_factory=set)
    persists: bool = False
    is_external: bool = False
    ranks: int = 1

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return self.shape.numel()

    @property
    def elements(self) -> int:
        """See the class."""
        return -(-self.numel // self.ranks)


class Parts:
    """All parameters of one rank, and how they are gathered.

    Args:
        offload: whether the parts are on the host.
    """

    def __init__(self, recorder: Recorder, host: HostMemory, *, offload: bool, device: torch.device) -> None:
        self._recorder, self._host, self._offload, self._device = recorder, host, offload, device
        self._num_ranks = dist.get_world_size()
        self._accelerator: Any = torch.meta  # type: ignore[attr-defined]
        self.by_id: dict[int, Part] = {}

    def of(self, parameter: nn.Parameter) -> Part | None:
        """The part of a parameter, if the parameter is sharded."""
        return self.by_id.get(id(parameter))

    # -- dividing -----------------------------------------------------------------------------------------------------

    def divide(self, parameter: nn.Parameter, *, role: Any = "weight", module: str = "") -> None:
        """Shards a parameter that is whole on the GPU."""
        part = Part(parameter, len(self.by_id), parameter.shape, ranks=self._num_ranks)
        self.by_id[id(parameter)] = part
        if self._offload:
            part.tensor, part.on_host = self._host.empty(part.elements, parameter.dtype, role=role), True
        else:
            part.tensor = torch.empty(part.elements, dtype=parameter.dtype, device=self._device)
            self._recorder.register(part.tensor, role=role, module=module)
        parameter.contiguous()
        self.free(part)

    def free(self, part: Part) -> None:
        """`free_param`: frees the whole parameter; the compute stream may still use it."""
        data = part.parameter.data
        data.record_stream(self._accelerator.current_stream())
        part.parameter.data = torch.empty(0, dtype=part.parameter.dtype, device=self._device)
        part.status = NOT_AVAILABLE

    def release(self, part: Part) -> None:
        """`partition`, for a parameter that has a part already."""
        if part.status == AVAILABLE:
            self.free(part)
        part.status = NOT_AVAILABLE

    # -- gathering ----------------------------------------------------------------------------------------------------

    def sent(self, part: Part) -> torch.Tensor:
        """The part on the GPU: a copy, if the part is on the host."""
        assert part.tensor is not None
        if not part.on_host:
            return part.tensor
        return torch.empty(part.elements, dtype=part.tensor.dtype, device=self._device)

    def gather_later(self, parts: Iterable[Part]) -> Callable[[], None]:
        """`all_gather_coalesced`: starts the all-gather. The returned function waits for it and makes the parameters
        whole."""
        ordered = sorted(parts, key=lambda part: part.number)
        for part in ordered:
            part.status = IN_FLIGHT
        if len(ordered) == 1:
            return self._start_one(ordered[0])
        by_dtype: dict[torch.dtype, list[Part]] = {}
        for part in ordered:
            assert part.tensor is not None
            by_dtype.setdefault(part.tensor.dtype, []).append(part)
        return _all_of([self._start_several(group) for group in by_dtype.values()])

    def _start_one(self, part: Part) -> Callable[[], None]:
        assert part.tensor is not None
        with self._recorder.as_role("workspace", "all_gather"):
            buffer = torch.empty(part.elements * self._num_ranks, dtype=part.tensor.dtype, device=self._device)
            _all_gather(buffer, self.sent(part))
        part.parameter.data = buffer.narrow(0, 0, part.numel).view(part.shape)

        def wait() -> None:
            part.status = AVAILABLE

        return wait

    def _start_several(self, parts: Sequence[Part]) -> Callable[[], None]:
        """One buffer for all, from which each parameter is copied."""
        size = sum(part.elements for part in parts)
        assert parts[0].tensor is not None
        with self._recorder.as_role("workspace", "all_gather"):
            flat = torch.empty(size * self._num_ranks, dtype=parts[0].tensor.dtype, device=self._device)
            pieces = [flat.narrow(0, size * rank, size) for rank in range(self._num_ranks)]
            own = pieces[dist.get_rank()]
            torch.cat([self.sent(part) for part in parts], out=own)
            _all_gather(flat, own)
        done: list[bool] = []

        def wait() -> None:  # keeps `pieces` alive until no function waits for any of the parameters
            if done:
                return
            done.append(True)
            begin = 0
            for part in parts:
                taken = []
                for rank in range(self._num_ranks):
                    first = rank * part.elements
                    if first < part.numel:
                        taken.append(pieces[rank].narrow(0, begin, min(part.numel - first, part.elements)))
                with self._recorder.as_role("workspace", "all_gather"):
                    part.parameter.data = torch.cat(taken).view(part.shape)
                part.status = AVAILABLE
                for piece in taken:
                    piece.record_stream(self._accelerator.current_stream())
                begin += part.elements

        return wait

    def gather_now(self, parts: Sequence[Part]) -> None:
        """`all_gather`: one buffer for each parameter; the host waits."""
        missing = [part for part in parts if part.status == NOT_AVAILABLE]
        if not missing:
            return
        sent = [self.sent(part) for part in missing]
        with self._recorder.as_role("workspace", "all_gather"):
            buffers = [
                torch.empty(part.elements * self._num_ranks, dtype=each.dtype, device=self._device)
                for part, each in zip(missing, sent, strict=True)
            ]
        for part, each, buffer in zip(missing, sent, buffers, strict=True):
            _all_gather(buffer, each)
            part.parameter.data = buffer.narrow(0, 0, part.numel).view(part.shape)
            part.status = AVAILABLE
        self._accelerator.synchronize()
        self._recorder.finish_streams()


def _all_of(waits: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def wait() -> None:
        for each in waits:
            each()

    return wait


_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
