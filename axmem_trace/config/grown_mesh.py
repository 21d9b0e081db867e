"""The mesh of a configuration for another number of GPUs: the shard size grows, all other sizes stay equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from axmem_trace.config.document.overrides import apply_overrides, parse_settings
from axmem_trace.config.document.yaml_reader import read_document

_OTHER_SIZES = ("dp_replicate_size", "context_parallel_size", "expert_parallel_size", "tensor_parallel_size")


def grow_mesh(config: str | Path | Mapping[str, Any], overrides: Sequence[str], count: int) -> tuple[str, ...]:
    """Changes for `--set`, so that the product of the mesh's sizes is `count`.

    Empty if no change is needed, or if no change is possible. In the second case the configuration is refused later, and
    the reason is reported.

    >>> keys = {"fsdp_config": {}, "context_parallel_size": 2, "dp_shard_size": 2}
    >>> grow_mesh(keys, (), 8)
    ('dp_shard_size=4',)
    >>> grow_mesh(keys, (), 1), grow_mesh({"fsdp_config": {}}, (), 8)
    ((), ())
    """
    values, _ = apply_overrides(read_document(config).values, dict(parse_settings(tuple(overrides), "--set")))
    if not values.get("fsdp_config") and values.get("fsdp_config") != {}:
        return ()
    sizes = {name: _size(values.get(name)) for name in ("dp_shard_size", *_OTHER_SIZES)}
    if "context_parallel_size" not in values:
        block = values.get("context_parallel")
        sizes["context_parallel_size"] = _size(block.get("size") if isinstance(block, Mapping) else None)
    others = prod(sizes[name] for name in _OTHER_SIZES)
    if prod(sizes.values()) in (1, count) or count < 2 or count % others:
        return ()
    return (f"dp_shard_size={count // others}",)


def _size(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1
