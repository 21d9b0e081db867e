"""FSDP1's `CPUOffload` on meta: flat shards and their gradients in pinned host memory.

A meta tensor has no device. So PyTorch's checks of devices are skipped here, and its copies between host and GPU are made
by what the record knows: which storages are host memory. Everything else is PyTorch's own code.

Source: torch 2.14 `distributed/fsdp/_flat_param.py` `init_flat_param_attributes`, `pre_unshard`, `flat_param_to`,
`_use_low_precision_shard`, `_use_sharded_flat_param`, `prepare_gradient_for_backward`; `_runtime_utils.py`
`_offload_grad`; `fully_sharded_data_parallel.py` `clip_grad_norm_`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from axmem_trace.parallel.host import HostMemory
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder

_CPU = torch.device("cpu")


@contextmanager
def flat_shards_offload_on_meta(recorder: Recorder) -> Iterator[None]:
    """While open, FSDP1 units with `CPUOffload` have their shards in host memory."""
    from torch.distributed.fsdp import _runtime_utils
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    init, pre_unshard = FlatParamHandle.init_flat_param_attributes, FlatParamHandle.pre_unshard
    move, cast = FlatParamHandle.flat_param_to, FlatParamHandle._use_low_precision_shard
    use_sharded, prepare = FlatParamHandle._use_sharded_flat_param, FlatParamHandle.prepare_gradient_for_backward

    def init_on_host(self: Any) -> None:
        with _as_if_on_gpu(self):
            init(self)
        if self._offload_params:
            flat = self.flat_param
            flat._local_shard = recorder.copy_to_host(flat.data, role="weight")
            flat._cpu_grad = HostMemory(recorder, pins=True).empty(flat.numel(), flat.dtype, role="gradient")

    def pre_unshard_from_host(self: Any) -> bool:
        changed = bool(pre_unshard(self))
        if self._offload_params and not self._uses_param_mixed_precision and recorder.is_on_host(self.flat_param):
            self.flat_param_to(self.device, non_blocking=True)
            return True
        return changed

    def with_copies(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _copies_recorded(recorder):
                return method(self, *args, **kwargs)

        return call

    def use_sharded_from_host(self: Any) -> None:
        with _as_if_on_gpu(self):
            use_sharded(self)

    def prepare_on_host(self: Any) -> None:
        """The gradient of the last micro-batch on the host is overwritten. The new gradient is not added to it."""
        flat = self.flat_param
        if self._offload_params and flat.grad is not None and flat.grad.size() == flat._local_shard.size():
            flat.grad = None
        prepare(self)

    replacements: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
        (FlatParamHandle, "init_flat_param_attributes", init_on_host),
        (FlatParamHandle, "pre_unshard", pre_unshard_from_host),
        (FlatParamHandle, "flat_param_to", with_copies(move)),
        (FlatParamHandle, "_use_low_precision_shard", with_copies(cast)),
        (FlatParamHandle, "_use_sharded_flat_param", use_sharded_from_host),
        (FlatParamHandle, "prepare_gradient_for_backward", prepare_on_host),
        (FlatParamHandle, "_check_on_cpu", lambda self, tensor: None),
        (_runtime_utils, "_check_flat_params_on_expected_device", lambda state, module: None),
    )
    with ExitStack() as stack:
        for owner, name, replacement in replacements:
            stack.enter_context(replaced(owner, name, replacement))
        yield


@contextmanager
def _as_if_on_gpu(handle: Any) -> Iterator[None]:
    """A method that only asks for the device if parameters are offloaded."""
    before, handle._offload_params = handle._offload_params, False
    try:
        yield
    finally:
        handle._offload_params = before


@contextmanager
def _copies_recorded(recorder: Recorder) -> Iterator[None]:
    """While open, `Tensor.to(device)` copies between host memory of the record and the GPU."""
    to: Callable[..., Any] = torch.Tensor.to

    def copy(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (tensor.is_meta and args and isinstance(args[0], torch.device)):
            return to(tensor, *args, **kwargs)
        if args[0] == _CPU:
            shard = HostMemory(recorder).pageable(tensor.numel(), tensor.dtype)
            recorder.register(shard, role="weight", device="cpu")
            return shard
        return tensor.clone() if recorder.is_on_host(tensor) else to(tensor, *args, **kwargs)

    with replaced(torch.Tensor, "to", copy):
        yield


@contextmanager
def norm_comes_to_host() -> Iterator[None]:
    """While open, `Tensor.cpu` returns a meta tensor itself: `clip_grad_norm_` copies the norm to the host."""
    cpu: Callable[..., Any] = torch.Tensor.cpu

    def same(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return tensor if tensor.is_meta else cpu(tensor, *args, **kwargs)

    with replaced(torch.Tensor, "cpu", same):
        yield
