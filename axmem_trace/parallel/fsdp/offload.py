"""FSDP2's `CPUOffloadPolicy` on meta: shards and gradients in host memory, with the copies between host and GPU.

A meta tensor has no device, so PyTorch's calls of `.to(device)`, `.cpu()` and `pin_memory()` are written again here:
the recorder counts a tensor as host memory while it is alive. Everything else is PyTorch's own code.

Source: torch 2.14 `distributed/fsdp/_fully_shard/_fsdp_param.py` `_init_sharded_param`, `reset_sharded_param`,
`all_gather_inputs`; `_fsdp_collectives.py` `foreach_reduce`; ATen/native/TensorConversions.cpp `_to_copy` (a
non-blocking copy to the host is pinned).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from axmem_trace.notes import Note
from axmem_trace.parallel.host import HostMemory
from axmem_trace.parallel.rank_facts import with_parameters_on_host
from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder


@contextmanager
def offloads_on_meta(recorder: Recorder) -> Iterator[None]:
    """While open, FSDP2 parameters with an offload policy have their shards in host memory."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    init, reset = FSDPParam._init_sharded_param, FSDPParam.reset_sharded_param
    gather_inputs: Callable[[Any], list[torch.Tensor]] = FSDPParam.__dict__["all_gather_inputs"].fget
    reduce = _fsdp_param_group.foreach_reduce

    def init_on_host(self: Any, *args: Any, **kwargs: Any) -> None:
        param = args[0] if args else kwargs["param"]
        is_filled = bool(recorder.allocation_tick(param))  # otherwise it is on meta in a real run too
        init(self, *args, **kwargs)
        if self.offload_to_cpu and is_filled and self._sharded_param_data.is_meta:
            shard = self._sharded_param_data
            _set_shard(self, _host(recorder, self).empty(shard.numel(), shard.dtype, role="weight"))

    def reset_on_host(self: Any) -> None:
        reset(self)
        if self.offload_to_cpu and self.sharded_param._local_tensor.is_meta:
            _reset(recorder, self)

    def inputs_on_gpu(self: Any) -> list[torch.Tensor]:
        shard = self._sharded_param_data
        if not (self.offload_to_cpu and shard.is_meta):
            return gather_inputs(self)
        self._sharded_param_data = shard.clone()  # `sharded_param_data.to(self.device, non_blocking=True)`
        try:
            return gather_inputs(self)
        finally:
            self._sharded_param_data = shard

    def reduce_to_host(*args: Any, **kwargs: Any) -> Any:
        with _copied_to_host(recorder):
            return reduce(*args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(replaced(FSDPParam, "_init_sharded_param", init_on_host))
        stack.enter_context(replaced(FSDPParam, "reset_sharded_param", reset_on_host))
        stack.enter_context(replaced(FSDPParam, "all_gather_inputs", property(inputs_on_gpu)))
        stack.enter_context(replaced(_fsdp_param_group, "foreach_reduce", reduce_to_host))
        yield


def _host(recorder: Recorder, parameter: Any) -> HostMemory:
    return HostMemory(recorder, pins=parameter.pin_memory)


def put_on_host(recorder: Recorder, parameter: Any) -> None:
    """Records that a shard (FSDP's own parameter object) arrives on the GPU, is copied to the host and, if requested,
    pinned."""
    size, dtype = parameter.padded_sharded_param_size.numel(), parameter.sharded_param.dtype
    arriving = torch.empty(size, dtype=dtype, device=recorder.traced_device)
    shard = _host(recorder, parameter).empty(size, dtype, role="weight")
    del arriving
    _set_shard(parameter, shard)


def _set_shard(parameter: Any, flat: torch.Tensor) -> None:
    """Makes this flat tensor, which has the padded size, the shard."""
    parameter._sharded_param_data = flat
    local: torch.Tensor = parameter.sharded_param._local_tensor
    rows = local.size(0) if local.numel() else 0
    parameter.sharded_param._local_tensor = flat.view(parameter.padded_sharded_param_size).narrow(0, 0, rows)


def _reset(recorder: Recorder, parameter: Any) -> None:
    """`reset_sharded_param`, which skips meta tensors: pads and pins a loaded shard, if it is not padded and pinned
    already."""
    local: torch.Tensor = parameter.sharded_param._local_tensor
    if local.untyped_storage()._cdata == parameter._sharded_param_data.untyped_storage()._cdata:
        return
    padded = parameter.padded_sharded_param_size
    if local.size() != padded:
        local = HostMemory(recorder).pageable(padded.numel(), local.dtype)
    if parameter.pin_memory:
        local = recorder.copy_to_host(local, role="weight")
    _set_shard(parameter, local.view(-1))


@contextmanager
def _copied_to_host(recorder: Recorder) -> Iterator[None]:
    """While open, `Tensor.to("cpu")` copies a meta tensor to host memory of the record."""
    to: Callable[..., Any] = torch.Tensor.to

    def to_host(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (tensor.is_meta and args and args[0] == torch.device("cpu")):
            return to(tensor, *args, **kwargs)
        if kwargs.get("non_blocking"):
            with recorder.paused():
                like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            return recorder.copy_to_host(like, role="gradient")
        host = HostMemory(recorder).pageable(tensor.numel(), tensor.dtype)
        return host.view(tensor.shape)

    with replaced(torch.Tensor, "to", to_host):
        yield


def copy_to_host(recorder: Recorder) -> Callable[[torch.Tensor], torch.Tensor]:
    """`Tensor.cpu` of a sharded tensor, which works on meta too."""
    from torch.distributed.tensor import DTensor

    if recorder.traced_device != "meta":
        return torch.Tensor.cpu
    host = HostMemory(recorder)

    def copy(tensor: Any) -> torch.Tensor:
        local: torch.Tensor = tensor._local_tensor
        moved = host.copy_of(local).view(local.shape)
        return DTensor.from_local(
            moved, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )

    return copy


def as_offloaded(rank_model: RankModel, recorder: Recorder) -> RankModel:
    """The same rank, with parameters, gradients and the optimizer in host memory."""
    text = (
        "parameters, gradients and optimizer states are in host memory. The optimizer runs on the CPU, and each gather "
        "first copies the rank's part to the GPU"
    )
    recorder.notes.append(Note(kind="traced", key="fsdp_config.offload_params", text=text))
    return replace(
        rank_model,
        facts=with_parameters_on_host(rank_model.facts),
        clip=_clip,
        with_optimizer=_on_host,
    )


def _clip(parameters: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
    """`Accelerator.clip_grad_norm_`; on the CPU there are no multi-tensor kernels."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), max_norm if max_norm > 0 else math.inf)


def _on_host(rank_model: RankModel, optimizer: Any) -> RankModel:
    optimizer.on_host = True
    return rank_model
