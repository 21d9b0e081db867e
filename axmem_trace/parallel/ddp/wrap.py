"""DistributedDataParallel: PyTorch's own class and its reducer on meta.

Source: accelerate 1.15 `accelerator.py` `prepare_model`; torch 2.14 `nn/parallel/distributed.py`,
torch/csrc/distributed/c10d/reducer.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from axmem_trace.recipe.parallel import Ddp
from axmem_trace.tracing.originals import call_original, called_by_libraries
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder


def wrap_model(model: nn.Module, ddp: Ddp) -> Any:
    """The model inside DDP, as accelerate wraps it."""
    from torch.nn.parallel import DistributedDataParallel

    options: dict[str, Any] = {}
    if ddp.bucket_cap_mb:
        options["bucket_cap_mb"] = ddp.bucket_cap_mb
    wrapped = DistributedDataParallel(
        model, find_unused_parameters=ddp.finds_unused, broadcast_buffers=ddp.broadcasts_buffers, **options
    )
    if torch.distributed.get_backend() == "fake":
        wrapped.register_comm_hook(None, lambda state, bucket: _finished(bucket.buffer()))
    wrapped.logger = cast(Any, _SilentLogger(wrapped.logger))
    return wrapped


def rebuild_buckets(wrapped: Any, recorder: Recorder) -> None:
    """Rebuilds the buckets in the order of the gradients, as the second step does before its first forward pass."""
    with recorder.as_role("buckets"), _HostKeepsItsValues():
        wrapped.reducer._rebuild_buckets()


class _SilentLogger:
    """DDP's logger without times. On meta there are none, and torch's C++ code would print a warning about it on stderr
    (torch 2.14, logger.cpp, `set_runtime_stats_and_log`)."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def set_runtime_stats_and_log(self) -> None:
        """Logs nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


def _finished(bucket: torch.Tensor) -> Any:
    """A finished future with the bucket itself, because a bucket is reduced in place (reducer.cpp,
    `run_allreduce_hook`). The `fake` group returns no work object to wait for."""
    future: Any = torch.futures.Future()
    future.set_result(bucket)
    return future


@contextmanager
def ddp_runs_on_meta() -> Iterator[None]:
    """After the first step, ranks compare the order of the buckets. Here this rank's order counts as that of all
    ranks."""
    from torch.nn.parallel import DistributedDataParallel

    pre_forward = DistributedDataParallel._pre_forward

    def pre_forward_alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _HostKeepsItsValues():
            return pre_forward(self, *args, **kwargs)

    with shapes_agree(), replaced(DistributedDataParallel, "_pre_forward", pre_forward_alone):
        yield


@contextmanager
def shapes_agree() -> Iterator[None]:
    """When DDP is made, ranks compare the shapes of their parameters. Here this rank's shapes count as those of all
    ranks."""
    from torch.nn.parallel import distributed

    with replaced(distributed, "_verify_param_shape_across_processes", _send_shapes):
        yield


def _send_shapes(process_group: Any, parameters: Any, logger: Any = None) -> None:
    """Copies the sizes and strides of all parameters to the GPU and broadcasts them (reducer.cpp,
    `verify_params_across_processes`)."""
    torch.empty(2 * sum(parameter.dim() for parameter in parameters), dtype=torch.int64, device=parameters[0].device)


class _HostKeepsItsValues(TorchDispatchMode):
    """Ignores copies from meta to the host: the host tensor already has this rank's values, and they are the result."""

    @called_by_libraries
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].device.type == "cpu" and args[1].is_meta:
            return args[0]
        return call_original(func, args, kwargs or {})
