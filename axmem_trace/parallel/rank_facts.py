"""The memory of one rank between steps: the facts of a sharded model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from axmem_trace.model_facts import Division, ModelFacts, TensorFact
from axmem_trace.parallel.wrapped_names import plain_name
from axmem_trace.tracing.tensors import local_part


@dataclass(frozen=True, slots=True)
class FlatShard:
    """FSDP1's shard of one unit: a part of the unit's parameters, one after the other."""

    module: str
    role: Literal["weight", "adapter"]
    tensor: torch.Tensor
    parts: Mapping[str, int]
    """How many of its elements belong to each parameter, by plain name."""
    is_part: bool = True
    """False: every rank has the full tensor."""


def local_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """This rank's part of each parameter and buffer, by plain name."""
    named = (*model.named_buffers(remove_duplicate=False), *model.named_parameters(remove_duplicate=False))
    return {plain_name(name): local_part(tensor) for name, tensor in named}


def sharded_names(model: nn.Module) -> frozenset[str]:
    """Parameters that FSDP2 or tensor parallelism has sharded, by plain name."""
    from torch.distributed.tensor import DTensor

    return frozenset(
        plain_name(name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if isinstance(parameter, DTensor) and not all(place.is_replicate() for place in parameter.placements)
    )


def flat_shards(model: nn.Module, wrapped: Any) -> Iterator[FlatShard]:
    """FSDP1's units (torch 2.14 `distributed/fsdp/_flat_param.py`, `_ShardParamInfo`)."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    names = {module: plain_name(name) for name, module in model.named_modules()}
    for unit in FullyShardedDataParallel.fsdp_modules(wrapped):
        if not unit._has_params:
            continue
        flat: Any = unit._flat_param
        unit_name = names.get(unit, "")
        parts: dict[str, int] = {}
        for name, info in zip(flat._fqns, flat._shard_param_infos, strict=True):
            full_name = plain_name(f"{unit_name}.{name}" if unit_name else name)
            parts[full_name] = info.numel_in_shard or 0
        is_adapter = bool(parts) and all("lora_" in name for name in parts)
        yield FlatShard(unit_name, "adapter" if is_adapter else "weight", flat, parts)


def describe_rank(
    facts: ModelFacts,
    tensors: Mapping[str, torch.Tensor],
    shards: Sequence[FlatShard] = (),
    sharded: frozenset[str] = frozenset(),
) -> ModelFacts:
    """The facts of the model with the bytes and elements of this rank. The numbers of weights stay those of the whole
    model.

    Args:
        facts: those of the model before it was sharded.
        tensors: this rank's tensors, by plain name. With FSDP1, the flat shards count instead.
        shards: FSDP1's flat shards. Their padding is a separate row.
        sharded: names of the sharded tensors; every rank has the other tensors in full.
    """
    parts = {name: (shard, count) for shard in shards for name, count in shard.parts.items()}
    rows: list[TensorFact] = []
    for fact in facts.tensors:
        if fact.name in parts:
            shard, elements = parts[fact.name]
            nbytes = elements * shard.tensor.element_size()
            rows.append(_as_on_rank(fact, shard.tensor, elements, nbytes, "sharded" if shard.is_part else "replicated"))
        else:
            tensor = tensors[fact.name]
            nbytes = tensor.untyped_storage().nbytes()
            division: Division = "sharded" if fact.name in sharded else "replicated"
            rows.append(_as_on_rank(fact, tensor, tensor.numel(), nbytes, division))
    rows.extend(_padding(shards))
    return replace(facts, tensors=tuple(rows))


def with_parameters_on_host(facts: ModelFacts) -> ModelFacts:
    """The facts with all parameters in host memory; buffers stay on the GPU."""
    rows = (replace(fact, device="cpu") if fact.kind == "parameter" else fact for fact in facts.tensors)
    return replace(facts, tensors=tuple(rows))


def _as_on_rank(fact: TensorFact, tensor: torch.Tensor, elements: int, nbytes: int, division: Division) -> TensorFact:
    dtype = str(tensor.dtype).removeprefix("torch.")
    whole = fact.elements if division == "sharded" else 0
    return replace(fact, dtype=dtype, elements=elements, nbytes=nbytes, division=division, whole_elements=whole)


def _padding(shards: Sequence[FlatShard]) -> Iterator[TensorFact]:
    for shard in shards:
        elements = shard.tensor.numel() - sum(shard.parts.values())
        nbytes = shard.tensor.untyped_storage().nbytes() - sum(shard.parts.values()) * shard.tensor.element_size()
        if nbytes:
            name = f"{shard.module}.(padding)".lstrip(".")
            yield TensorFact(
                name=name,
                module=shard.module,
                kind="parameter",
                role=shard.role,
                dtype=str(shard.tensor.dtype).removeprefix("torch."),
                trainable=shard.tensor.requires_grad,
                elements=elements,
                logical_elements=0,
                nbytes=nbytes,
                division="sharded" if shard.is_part else "replicated",
            )
