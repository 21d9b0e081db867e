"""The device of each module when the model is loaded. Source: axolotl 0.19 `loaders/model.py` `_set_device_map_config`,
`utils/config/__init__.py` `choose_device`, `normalize_config`; transformers 5.16 `integrations/accelerate.py`
`check_and_set_device_map`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axmem_trace.config.derive.fsdp import requests_fsdp
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Placement

_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
_CPU_LIMIT = "256GiB"
"""axolotl's limit for the host's memory under `gpu_memory_limit`."""


def derive_placement(draft: Draft, num_gpus: int) -> Placement:
    """`Placement` from `gpu_memory_limit`, `max_memory` and `device_map`, in that order.

    Raises:
        ConfigError: a device that a run on one GPU does not have.
    """
    if requests_fsdp(draft) or draft.get("deepspeed") or num_gpus > 1:
        return Placement()
    limit = draft.get("gpu_memory_limit")
    if limit:
        text = f"{limit}GiB" if isinstance(limit, int) else str(limit)
        draft.reason("placement.max_memory", text, "`gpu_memory_limit`", key="gpu_memory_limit")
        return Placement(max_memory={0: text, "cpu": _CPU_LIMIT}, key="gpu_memory_limit")
    if draft.has("max_memory"):
        given = {_index(key): value for key, value in draft.sub("max_memory").items()}
        draft.reason("placement.max_memory", given, "`max_memory`", key="max_memory")
        return Placement(max_memory=given, key="max_memory")
    return _of_device_map(draft, draft.get("device_map"))


def _of_device_map(draft: Draft, asked: Any) -> Placement:
    if asked is None or asked in _AUTOMATIC or asked == "" or asked == {}:
        return Placement(automatic=True)
    places = dict(asked) if isinstance(asked, Mapping) else {"": asked}
    devices = {name: _device(draft, device) for name, device in places.items()}
    if set(devices.values()) == {"gpu"}:
        return Placement()
    draft.reason("placement.device_map", asked, "`device_map`", key="device_map")
    if set(devices.values()) == {"cpu"}:
        return Placement(on_host_first=True, key="device_map")
    on_host = tuple(str(name) for name, device in devices.items() if device == "cpu")
    return Placement(on_host=on_host, key="device_map")


def _device(draft: Draft, device: Any) -> str:
    text = str(device)
    if text in ("cpu", "disk"):
        return "cpu"
    if text in ("0", "cuda", "cuda:0"):
        return "gpu"
    raise draft.error(
        "a run on one GPU has no such device",
        "device_map",
        accepted="auto, balanced, sequential, cuda:0, cpu, or a mapping of modules to 0, cpu or disk",
        remedy="remove device_map; axolotl's default is auto",
    )


def _index(key: Any) -> Any:
    return int(key) if str(key).isdigit() else key
