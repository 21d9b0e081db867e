"""Tensor parallelism: transformers' own plan for the model, on meta. With more ranks than the plan uses, transformers'
FSDP2 too.

From 0.20 on, axolotl passes a `DistributedConfig` to `from_pretrained`. It shards the model before the weights are
read, so each rank reads only its shards. Each rank of a tensor-parallel group has the full parameters that are not in
the plan (norms, the embedding).

Source: axolotl 0.21 `loaders/model.py` `_build_model`, `monkeypatch/accelerate/tp.py`; transformers 5.20.1
`distributed/mixin.py` `maybe_distribute_model`, `distributed/tensor_parallel.py`, `distributed/fsdp.py`; accelerate 1.15
`accelerator.py` `prepare_model` (autocast, and no further wrapper), `_prepare_tp`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from axmem_trace.errors import ConfigError
from axmem_trace.ledger import block_bytes
from axmem_trace.models.built import unwrapped
from axmem_trace.parallel.ranks import RankGroup, choose_recorded
from axmem_trace.recipe.parallel import Mesh, Parallel
from axmem_trace.recipe.pins import hint_at_pin
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced

_AXES = ("pp", "fsdp", "tp")
"""Names of the axes of transformers' mesh (`initialize_distributed_mesh`)."""


def shard_model(model: nn.Module, recipe: Recipe, *, device_type: str = "meta") -> None:
    """Shards the parameters by the model's plan, and replaces the forwards of the modules with collectives, in place.

    Args:
        device_type: `meta`, or `cpu` to shard real tensors across real processes.

    Raises:
        ConfigError: transformers has no plan for this model, or can't shard the model by its plan.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    mesh, inner = recipe.parallel.mesh, unwrapped(model)
    _refuse_without_plan(inner, mesh)
    dense = init_device_mesh(device_type, (1, mesh.shard, mesh.tensor), mesh_dim_names=_AXES)
    config = DistributedConfig(tp_size=mesh.tensor, tp_plan="auto", fsdp_size=mesh.shard)
    try:
        type(inner).maybe_distribute_model(inner, config, _as_loader_takes_it(dense, recipe))
    except ValueError as error:
        raise ConfigError(
            problem=f"transformers can't divide this model: {error}",
            key="tensor_parallel_size",
            value=mesh.tensor,
            remedy="choose another number, or use FSDP",
        ) from error
    _drop_whole_tensors(inner)
    if mesh.shard == 1:
        replicate_rest(inner, dense["tp"])
    _refuse_mixed_units(inner)


def _as_loader_takes_it(dense: Any, recipe: Recipe) -> Any:
    """The mesh in the form that the installed transformers expects.

    Raises:
        ConfigError: this transformers can't combine tensor parallelism with FSDP2.
    """
    import transformers
    from transformers.distributed import utils

    mesh = recipe.parallel.mesh
    if hasattr(utils, "TransformersDeviceMesh"):
        sizes = (1, mesh.shard * mesh.tensor, 1)
        experts = init_device_mesh(dense.device_type, sizes, mesh_dim_names=("pp", "efsdp", "ep"))
        return utils.TransformersDeviceMesh(dense, experts)
    if mesh.shard > 1:
        raise ConfigError(
            problem=f"transformers {transformers.__version__} can't combine tensor parallelism with FSDP2",
            key="tensor_parallel_size",
            value=mesh.tensor,
            remedy=f"run on {mesh.tensor} GPUs{hint_at_pin(recipe.axolotl, transformers.__version__)}",
        )
    return dense["tp"]


def _refuse_mixed_units(model: nn.Module) -> None:
    """Refuses a unit whose trainable parameters have several dtypes, for example because axolotl leaves norms in fp32.
    FSDP2 fails with it (torch 2.14 `_fsdp_param_group.py` `_init_mp_dtypes`)."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        group = module._get_fsdp_state()._fsdp_param_group
        dtypes = (
            {each.sharded_param.dtype for each in group.fsdp_params if each.sharded_param.requires_grad}
            if group
            else ()
        )
        if len(dtypes) > 1:
            raise ConfigError(
                problem="axolotl leaves the norms in fp32, and FSDP2, by which transformers divides the model among the "
                "other GPUs, refuses several dtypes in a layer",
                key="tensor_parallel_size",
                remedy="add an `fsdp_config`, or `attn_implementation: flash_attention_2`",
            )


def _refuse_without_plan(model: Any, mesh: Mesh) -> None:
    missing = "tp_plan" if not model.tp_plan else "fsdp_plan" if mesh.shard > 1 and not model.fsdp_plan else ""
    if missing:
        raise ConfigError(
            problem=f"transformers has no {missing} for {type(model).__name__}: the run would not divide it",
            key="tensor_parallel_size",
            value=mesh.tensor,
            remedy="use FSDP (`fsdp_config` and `dp_shard_size`) instead",
        )


def _drop_whole_tensors(model: nn.Module) -> None:
    """Copies shards that are views of full tensors, to free the full tensors. A run reads only the shards."""
    from torch.distributed.tensor import DTensor

    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            local = parameter._local_tensor
            if local.untyped_storage().nbytes() != local.nbytes:
                parameter._local_tensor = local.clone(memory_format=torch.contiguous_format)


def replicate_rest(model: nn.Module, mesh: Any) -> None:
    """Makes the parameters without a plan replicated DTensors, because an optimizer refuses a mixture. Their modules
    compute with plain tensors (axolotl `replicate_plain_params_for_tp`)."""
    from torch.distributed.tensor import DTensor, Replicate
    from transformers.distributed.tensor_parallel import TensorParallelLayer

    class LocalForward(TensorParallelLayer):
        def should_use_local_tensors(self, module: nn.Module) -> bool:
            return True

    style = LocalForward()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                continue
            if "forward" not in vars(module):  # a module of the plan has its own forward
                style.install_forward(module, mesh)
            whole = DTensor.from_local(parameter.data, mesh, [Replicate()], run_check=False)
            setattr(module, name, nn.Parameter(whole, requires_grad=parameter.requires_grad))


@contextmanager
def gradients_summed_by_hooks() -> Iterator[None]:
    """For norms between sharded layers: axolotl all-reduces a copy of the gradient of this backward. transformers
    itself all-reduces the accumulated gradient (`_patch_replicated_grad_all_reduce`)."""
    from transformers.distributed import tensor_parallel

    with ExitStack() as stack:
        if hasattr(tensor_parallel, "ReplicatedWithGradAllReduce"):
            style = tensor_parallel.ReplicatedWithGradAllReduce
            stack.enter_context(replaced(style, "install_forward", _sum_by_hooks))
        yield


def _sum_by_hooks(style: Any, module: nn.Module, mesh: Any) -> nn.Module:
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    group = mesh.get_group()

    def summed(gradient: torch.Tensor) -> torch.Tensor:
        is_part = isinstance(gradient, DTensor)
        local = (gradient.to_local() if isinstance(gradient, DTensor) else gradient).clone()
        dist.all_reduce(local, group=group)
        if not is_part:
            return local
        whole: Any = gradient
        return DTensor.from_local(local, whole.device_mesh, whole.placements, run_check=False)

    def watch(owner: nn.Module, arguments: Any) -> None:
        for parameter in owner.parameters(recurse=False):
            if parameter.requires_grad and not getattr(parameter, "_axmem_summed", False):
                parameter.register_hook(summed)
                parameter._axmem_summed = True  # type: ignore[attr-defined]

    module.register_forward_pre_hook(watch)
    return module


def group_ranks(model: nn.Module, parallel: Parallel) -> tuple[RankGroup, ...]:
    """Groups of ranks whose shards of trainable parameters have equal sizes: an axis may divide a dimension
    unevenly."""
    trained = [each for each in model.parameters() if each.requires_grad]
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank in range(parallel.num_gpus):
        groups.setdefault(tuple(_bytes_on(each, rank, parallel.mesh) for each in trained), []).append(rank)
    return choose_recorded([RankGroup(tuple(ranks), sum(map(block_bytes, parts))) for parts, ranks in groups.items()])


def _bytes_on(parameter: nn.Parameter, rank: int, mesh: Mesh) -> int:
    """Bytes of a parameter on a rank. The axes of the parameter's mesh divide it one after the other, the first axis
    first."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

    if not isinstance(parameter, DTensor):
        return parameter.nbytes
    place = {"pp": 0, "fsdp": rank // mesh.tensor, "tp": rank % mesh.tensor}
    names = parameter.device_mesh.mesh_dim_names or ()
    shape, _ = _compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh.shape, [place[name] for name in names], parameter.placements
    )
    return torch.Size(shape).numel() * parameter.element_size()
