"""FSDP1: PyTorch's own `FullyShardedDataParallel` on meta, prepared as in accelerate and transformers.

Source: accelerate 1.13 and 1.15 `accelerator.py` `prepare_model`, `utils/dataclasses.py`; transformers 5.16
`distributed/fsdp.py` `update_fsdp_plugin_peft`; peft 0.20 `utils/other.py` `fsdp_auto_wrap_policy`; torch 2.14
`distributed/fsdp/fully_sharded_data_parallel.py`, `_init_utils.py`, `_flat_param.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from axmem_trace.parallel.fsdp.units import make_wrap_policy
from axmem_trace.recipe.parallel import Fsdp
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder


def wrap_model(model: nn.Module, recipe: Recipe, recorder: Recorder, *, arrives: Callable[[nn.Module], None]) -> Any:
    """The model inside FSDP1, with its layers as separate units.

    Args:
        arrives: called with each module before its parameters are flattened, to move them to the GPU.
    """
    from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel, MixedPrecision, ShardingStrategy

    fsdp = recipe.parallel.fsdp
    dtype = getattr(torch, fsdp.param_dtype) if fsdp.param_dtype else None
    wrapped = FullyShardedDataParallel(
        model,
        sharding_strategy=ShardingStrategy[fsdp.sharding_strategy],
        cpu_offload=CPUOffload(offload_params=fsdp.offload_params),
        auto_wrap_policy=_make_policy(model, fsdp),
        mixed_precision=MixedPrecision(param_dtype=dtype, reduce_dtype=dtype, buffer_dtype=dtype) if dtype else None,
        backward_prefetch=_prefetch(fsdp),
        sync_module_states=fsdp.syncs_states,
        use_orig_params=fsdp.uses_orig_params,
        device_id=torch.device(recorder.traced_device),
        param_init_fn=arrives,
        ignored_modules=list(_adapters(model)) if fsdp.adapters == "ignored" else None,
    )
    if dtype is not None:
        with recorder.on_host() if fsdp.offload_params else nullcontext():
            upcast_trained(wrapped)
    if recipe.older.checkpoints_units:
        checkpoint_units(wrapped)
    return wrapped


def checkpoint_units(wrapped: Any) -> None:
    """Makes checkpointing run around a unit. In transformers until 4.52, the model's forward called it with each layer
    (`self._gradient_checkpointing_func(layer.__call__, ...)`). A unit's hooks then keep the inputs that the
    recomputation detaches."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    class CheckpointedUnit(FullyShardedDataParallel):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            function = partial(FullyShardedDataParallel.__call__, self, **kwargs)
            return self.checkpoint(function, *args) if self.training else function(*args)

    units: list[Any] = FullyShardedDataParallel.fsdp_modules(wrapped)
    for unit in units:
        layer = unit.module
        if getattr(layer, "gradient_checkpointing", False) and hasattr(layer, "_gradient_checkpointing_func"):
            layer.gradient_checkpointing = False
            unit.checkpoint = layer._gradient_checkpointing_func
            unit.__class__ = CheckpointedUnit


def upcast_trained(wrapped: Any) -> None:
    """With mixed precision, the trainable shards are kept in fp32 (`prepare_model`, "Upcasted low precision
    parameters")."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    units: list[Any] = FullyShardedDataParallel.fsdp_modules(wrapped)
    for unit in units:
        parameter = unit._flat_param if unit._has_params else None
        if parameter is not None and parameter.dtype != torch.float32 and parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
            unit._handle._orig_param_dtype = torch.float32


def _make_policy(model: nn.Module, fsdp: Fsdp) -> Callable[..., bool]:
    """The policy that decides which modules become units. With adapters, every trainable leaf module is a unit too
    (peft `fsdp_auto_wrap_policy`)."""
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    if fsdp.wrap == "size":
        return partial(size_based_auto_wrap_policy, min_num_params=fsdp.min_num_params)
    is_unit, has_adapter = make_wrap_policy(model, fsdp), hasattr(model, "peft_config")

    def policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        return recurse or is_unit(module) or (has_adapter and _is_trained_leaf(module))

    return policy


def _is_trained_leaf(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.requires_grad and next(module.children(), None) is None


def _prefetch(fsdp: Fsdp) -> Any:
    from torch.distributed.fsdp import BackwardPrefetch

    return {"none": None, "pre": BackwardPrefetch.BACKWARD_PRE, "post": BackwardPrefetch.BACKWARD_POST}[fsdp.prefetch]


def _adapters(model: nn.Module) -> Iterator[nn.Module]:
    """The factors of all adapted layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                part = getattr(module, name, None)
                if isinstance(part, nn.Module):
                    yield part


@contextmanager
def fsdp1_runs_on_meta() -> Iterator[None]:
    """Replaces FSDP1's comparisons of addresses, which find out whether two tensors are the same and whether they have
    memory (`_same_storage`, `_data_ptr_allocated`, `_catch_all_reshard`). Meta tensors have no address, so the address
    of the storage object is used."""
    from torch.distributed.fsdp import _flat_param

    data_ptr = torch.Tensor.data_ptr

    def address(tensor: torch.Tensor) -> int:
        if not tensor.is_meta:
            return data_ptr(tensor)
        storage = tensor.untyped_storage()
        return storage._cdata + tensor.storage_offset() * tensor.element_size() if storage.nbytes() else 0

    def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)

    with (
        replaced(torch.Tensor, "data_ptr", address),
        replaced(_flat_param, "_same_storage", is_same),
        replaced(_flat_param, "_data_ptr_allocated", lambda tensor: tensor.untyped_storage().nbytes() > 0),
    ):
        yield
