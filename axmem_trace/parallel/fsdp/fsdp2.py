"""FSDP2: PyTorch's own `fully_shard` on meta, prepared as in axolotl and accelerate.

Source: axolotl 0.21 and 0.19 `monkeypatch/accelerate/fsdp2.py` `fsdp2_prepare_model`, `monkeypatch/fsdp2_qlora.py`,
`utils/fp32_norms.py` `shard_norms_fp32`; accelerate 1.15 `accelerator.py` `_prepare_fsdp2`; torch 2.14
`distributed/fsdp/_fully_shard/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from axmem_trace.models.dtypes import fp32_norm_modules
from axmem_trace.parallel.fsdp.separate_adapters import find_separate_adapters
from axmem_trace.parallel.fsdp.units import bottom_up, make_wrap_policy
from axmem_trace.parallel.wrapped_names import module_of
from axmem_trace.recipe.parallel import Mesh
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def shard_model(model: nn.Module, recipe: Recipe, *, device_type: str = "meta") -> None:
    """Makes each layer of the model an FSDP2 unit, and the rest another unit, in place.

    Args:
        device_type: `meta`, or `cpu` to shard real tensors across real processes.

    Raises:
        ConfigError: the model has no layer of a class that the configuration names.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    fsdp = recipe.parallel.fsdp
    is_unit = make_wrap_policy(model, fsdp)
    if fsdp.activation_checkpointing:
        checkpoint_layers(model, is_unit)
    options = unit_options(recipe, make_mesh(recipe.parallel.mesh, device_type))
    _shard_norms(model, recipe, options)
    for module in bottom_up(model):
        if isinstance(module, _CONTAINERS):
            continue
        if fsdp.adapters == "own":
            _shard_adapter(module, options)
        if is_unit(module) and not isinstance(module, FSDPModule):
            for part in find_separate_adapters(module):
                fully_shard(part, **options)
            fully_shard(module, **options)
    for part in find_separate_adapters(model):
        fully_shard(part, **options)
    fully_shard(model, **options)


def make_mesh(mesh: Mesh, device_type: str) -> DeviceMesh:
    """The device mesh: an axis of the ranks that share one copy of the parameters and, if there are several copies, an
    axis of the copies."""
    if mesh.replicate > 1:
        return init_device_mesh(device_type, (mesh.replicate, mesh.num_shards), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device_type, (mesh.num_shards,), mesh_dim_names=("shard",))


def checkpoint_layers(model: nn.Module, is_unit: Callable[[nn.Module], bool]) -> None:
    """FSDP's own activation checkpointing: puts each layer into a wrapper that is not reentrant (`fsdp2_apply_ac`)."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

    layers = [(name, module) for name, module in model.named_modules() if name and is_unit(module)]
    for name, module in layers:
        model.set_submodule(name, checkpoint_wrapper(module, checkpoint_impl=CheckpointImpl.NO_REENTRANT))


def unit_options(recipe: Recipe, mesh: DeviceMesh) -> dict[str, Any]:
    """The arguments that accelerate passes to `fully_shard`."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy

    fsdp = recipe.parallel.fsdp
    policy = MixedPrecisionPolicy(
        param_dtype=_dtype(fsdp.param_dtype),
        reduce_dtype=_dtype(fsdp.reduce_dtype),
        output_dtype=_dtype(fsdp.output_dtype),
    )
    return {
        "mesh": mesh,
        "mp_policy": policy,
        "reshard_after_forward": fsdp.reshard_after_forward,
        "offload_policy": CPUOffloadPolicy(pin_memory=fsdp.pins_offloaded) if fsdp.offload_params else OffloadPolicy(),
    }


def _dtype(name: str) -> torch.dtype | None:
    dtype: torch.dtype | None = getattr(torch, name) if name else None
    return dtype


def _shard_norms(model: nn.Module, recipe: Recipe, options: Mapping[str, Any]) -> None:
    """`fp32_norms`: makes each norm a separate unit that computes in fp32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not recipe.precision.fp32_norms:
        return
    policy = MixedPrecisionPolicy(torch.float32, torch.float32, options["mp_policy"].param_dtype)
    for module in fp32_norm_modules(model, recipe.precision):
        fully_shard(module, **{**options, "mp_policy": policy})


def _shard_adapter(module: nn.Module, options: Mapping[str, Any]) -> None:
    """axolotl 0.19 `_process_lora_module_for_fsdp`: A, B and the magnitude of each adapted layer become units. An
    adapted embedding becomes one unit as a whole."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not isinstance(module, LoraLayer) or isinstance(module, ParamWrapper):
        return
    for holder in (module.lora_A, module.lora_B, module.lora_magnitude_vector):
        for part in holder.values():
            fully_shard(part, **options)
    if (module.lora_embedding_A or module.lora_embedding_B) and not isinstance(module, FSDPModule):
        fully_shard(module, **options)


@contextmanager
def fsdp2_runs_on_meta() -> Iterator[None]:
    """Lets FSDP2 run with meta parameters. FSDP2 itself refuses them, because it treats them as not loaded yet."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group, _fully_shard

    group = _fsdp_param_group.FSDPParamGroup
    with ExitStack() as stack:
        stack.enter_context(replaced(group, "_validate_no_meta_params", lambda self: None))
        stack.enter_context(replaced(group, "_validate_cpu_offload_params", lambda self: None))
        stack.enter_context(
            replaced(_fully_shard, "_get_device_from_mesh", lambda mesh: torch.device(mesh.device_type))
        )
        stack.enter_context(replaced(torch.accelerator, "current_stream", _current_stream))
        stack.enter_context(packed_weights_kept())
        yield


@contextmanager
def packed_weights_kept() -> Iterator[None]:
    """Keeps bitsandbytes' packed parameters packed, as axolotl does (`monkeypatch/fsdp2_qlora.py`). FSDP2 itself makes
    plain parameters of them."""
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    with ExitStack() as stack:
        for name in ("_init_sharded_param", "init_unsharded_param", "init_dtype_attrs"):
            stack.enter_context(replaced(FSDPParam, name, _with_packed(getattr(FSDPParam, name), name)))
        yield


def _current_stream(device: Any = None) -> Any:
    """The current stream. FSDP2 gets it here, and not from the device module, if a prefetched gather was not needed."""
    return torch.meta.current_stream()  # type: ignore[attr-defined]


def _with_packed(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Makes `original` work with packed weights: they keep their states and their own dtype."""

    def init_sharded_param(self: Any, param: nn.Parameter, *args: Any, **kwargs: Any) -> Any:
        self.axmem_packing = _packing_of(param)
        return original(self, param, *args, **kwargs)

    def init_unsharded_param(self: Any) -> Any:
        original(self)
        if self.axmem_packing is None:
            return
        kind, options = self.axmem_packing
        if not isinstance(self._unsharded_param, kind):
            self._unsharded_param = _repacked(kind, options, self._unsharded_param)

    def init_dtype_attrs(self: Any, mp_policy: Any) -> Any:
        original(self, mp_policy)
        if not self.sharded_param.dtype.is_floating_point:
            self.param_dtype = None

    replacements: dict[str, Callable[..., Any]] = {
        "_init_sharded_param": init_sharded_param,
        "init_unsharded_param": init_unsharded_param,
        "init_dtype_attrs": init_dtype_attrs,
    }
    return replacements[name]


def _packing_of(parameter: Any) -> tuple[type[Any], dict[str, Any]] | None:
    """The class of a packed parameter, and the arguments to make another one, without the data; None: it is not packed.
    The parameter itself must not be kept, because its full data would stay on the GPU."""
    if hasattr(parameter, "quant_state"):
        names = ("quant_state", "blocksize", "compress_statistics", "quant_type", "quant_storage", "module")
        return type(parameter), {**{name: getattr(parameter, name) for name in names}, "bnb_quantized": True}
    if hasattr(parameter, "SCB"):
        return type(parameter), {"has_fp16_weights": False, "SCB": parameter.SCB}
    return None


def _repacked(kind: type[Any], options: Mapping[str, Any], data: torch.Tensor) -> Any:
    if "SCB" in options:
        return kind(data, requires_grad=False, CB=data, **options)
    return kind(data, requires_grad=False, **options)


def load_shards(
    model: Any,
    recorder: Recorder,
    waiting: dict[int, torch.Tensor],
    offload: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Copies each full tensor to the GPU, and keeps this rank's shard of it (`fsdp2_load_full_state_dict`).

    Args:
        recorder: the full tensors are on its traced device.
        waiting: the weights in host memory by parameter, on a rank that reads them. Each is freed when it has been
            sent.
        offload: copies a shard to the host (`offload_to_cpu`).
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    loaded: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        with recorder.in_module(module_of(name)):
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=recorder.traced_device)
            part: torch.Tensor = whole
            if isinstance(tensor, DTensor):
                part = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=0)
                if offload is not None:
                    part = offload(part)
            loaded[name] = nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part
            del whole, part
            waiting.pop(id(tensor), None)
    model.load_state_dict(loaded, assign=True, strict=True)
    del loaded
    if hasattr(model, "tie_weights"):  # a tied weight was loaded under both names
        model.tie_weights()
