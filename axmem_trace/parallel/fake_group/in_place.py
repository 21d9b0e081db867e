"""What a recorder must know if a model is sharded across ranks: storages that change their size in place, and operators
that only calculate shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from axmem_trace.ledger import Role
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder


@contextmanager
def resizes_recorded(recorder: Recorder) -> Iterator[None]:
    """Records `UntypedStorage.resize_`, by which FSDP frees and allocates gathered parameters. It is not an
    operator."""
    resize = torch.UntypedStorage.resize_

    def resize_and_record(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        recorder.resized(storage)
        return result

    with replaced(torch.UntypedStorage, "resize_", resize_and_record):
        yield


@contextmanager
def shapes_planned_unseen(recorder: Recorder) -> Iterator[None]:
    """Does not record the fake tensors of the global size with which DTensor calculates shapes: no GPU allocates them
    (torch/distributed/tensor/_sharding_prop.py, `_propagate_tensor_meta_non_cached`)."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    plan = ShardingPropagator._propagate_tensor_meta_non_cached

    def plan_unseen(self: Any, *args: Any, **kwargs: Any) -> Any:
        with recorder.paused():
            return plan(self, *args, **kwargs)

    with replaced(ShardingPropagator, "_propagate_tensor_meta_non_cached", plan_unseen):
        yield


@contextmanager
def gathers_recorded(recorder: Recorder) -> Iterator[None]:
    """Gives gathered parameters and DDP's buckets separate roles, so that they count as workspace in every phase."""
    from torch.distributed.fsdp._flat_param import FlatParamHandle
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
    from torch.nn.parallel import DistributedDataParallel

    def as_role(method: Callable[..., Any], role: Role) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with recorder.as_role(role):
                return method(*args, **kwargs)

        return call

    methods: tuple[tuple[Any, str, Role], ...] = (
        (FSDPParamGroup, "unshard", "gathered"),
        (FSDPParamGroup, "wait_for_unshard", "gathered"),
        (FlatParamHandle, "pre_unshard", "gathered"),
        (FlatParamHandle, "unshard", "gathered"),
        (DistributedDataParallel, "__init__", "buckets"),
        (DistributedDataParallel, "_pre_forward", "buckets"),
    )
    with ExitStack() as stack:
        for owner, name, role in methods:
            stack.enter_context(replaced(owner, name, as_role(getattr(owner, name), role)))
        yield


@contextmanager
def streams_recorded(recorder: Recorder) -> Iterator[None]:
    """Makes FSDP1 call `record_stream` on meta too. It does so only for tensors on GPUs
    (torch/distributed/fsdp/_common_utils.py, `_no_dispatch_record_stream`)."""
    from torch.distributed.fsdp import _flat_param, _runtime_utils

    def record_stream(tensor: torch.Tensor, stream: Any) -> None:
        recorder.use_on(tensor, stream.number)

    with ExitStack() as stack:
        for module in (_flat_param, _runtime_utils):
            stack.enter_context(replaced(module, "_no_dispatch_record_stream", record_stream))
        stack.enter_context(replaced(torch.Tensor, "record_stream", record_stream))
        yield
