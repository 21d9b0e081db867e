"""The settings of DeepSpeed: a JSON file, one of axolotl's standard files by name, or a mapping.

Source: axolotl 0.19 `deepspeed_configs/`; deepspeed 0.18.9 `runtime/zero/config.py` `DeepSpeedZeroConfig` (defaults);
transformers 5.16 `integrations/deepspeed.py` `trainer_config_finalize` (what "auto" becomes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.parallel import Zero

MAX_JSON_BYTES = 1 << 20
AUTO = -1
"""In a recipe: the size follows the model."""
_STAGE_3 = {
    "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 0, "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto", "max_live_parameters": 0,
    "max_reuse_distance": 0,
}  # fmt: skip
_PINNED = {"device": "cpu", "pin_memory": True}
_STAGE_2 = {"stage": 2, "offload_optimizer": {"device": "cpu"}, "contiguous_gradients": True, "overlap_comm": True}
STOCK: Mapping[str, Mapping[str, Any]] = {
    "zero1": {"stage": 1, "overlap_comm": True},
    "zero1_torch_compile": {"stage": 1, "overlap_comm": True},
    "zero2": _STAGE_2,
    "zero2_torch_compile": _STAGE_2,
    "zero3": _STAGE_3,
    "zero3_bf16": _STAGE_3,
    "zero3_bf16_cpuoffload_params": {**_STAGE_3, "offload_param": _PINNED},
    "zero3_bf16_cpuoffload_all": {**_STAGE_3, "offload_param": _PINNED, "offload_optimizer": _PINNED},
}
"""`zero_optimization` of the files that `axolotl fetch deepspeed_configs` downloads, by their names."""


def derive_zero(draft: Draft) -> Zero:
    """`Zero` from the key `deepspeed`; stage 0 if it is not given, or has no ZeRO settings.

    A file that is not here, with the name of one of axolotl's files, is assumed to be that one.
    """
    value = draft.get("deepspeed")
    if isinstance(value, Mapping):
        return _make_zero(value.get("zero_optimization"), "the configuration")
    if not isinstance(value, str) or not value:
        return Zero()
    found = _read_json(value, draft.directory)
    if found is not None:
        return _make_zero(found.get("zero_optimization"), value)
    stock = STOCK.get(Path(value).stem)
    if stock is None:
        draft.note(
            "not_modelled",
            "deepspeed",
            f"{value} is not here, and axolotl has no file of this name: its content is unknown",
        )
        return Zero()
    draft.reason(
        "parallel.zero", Path(value).name, "the file is not here; axolotl's file of this name is used", key="deepspeed"
    )
    return _make_zero(stock, f"axolotl's {Path(value).name}")


def _make_zero(said: object, source: str) -> Zero:
    zero: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    default, stage = Zero(), zero.get("stage")

    def size(key: str, otherwise: int) -> int:
        value = zero.get(key, otherwise)
        return AUTO if value == "auto" else int(float(value))

    stage = stage if isinstance(stage, int) else 0
    overlaps = zero.get("overlap_comm")
    return Zero(
        stage=stage,
        reduce_bucket_elements=size("reduce_bucket_size", default.reduce_bucket_elements),
        prefetch_bucket_elements=size("stage3_prefetch_bucket_size", default.prefetch_bucket_elements),
        persistence_elements=size("stage3_param_persistence_threshold", default.persistence_elements),
        max_live_elements=size("stage3_max_live_parameters", size("max_live_parameters", default.max_live_elements)),
        max_reuse_elements=size("stage3_max_reuse_distance", size("max_reuse_distance", default.max_reuse_elements)),
        sub_group_elements=size("sub_group_size", default.sub_group_elements),
        overlaps=stage == 3 if overlaps is None else bool(overlaps),
        contiguous_gradients=bool(zero.get("contiguous_gradients", True)),
        offload_optimizer=_device(zero.get("offload_optimizer")),
        offload_params=_device(zero.get("offload_param")),
        pins_offloaded=_is_pinned(zero),
        source=source,
    )


def _device(said: object) -> Literal["", "cpu", "nvme"]:
    device = said.get("device") if isinstance(said, Mapping) else ""
    return cast(Literal["", "cpu", "nvme"], device) if device in ("cpu", "nvme") else ""


def _is_pinned(zero: Mapping[str, Any]) -> bool:
    parts = (zero.get("offload_param"), zero.get("offload_optimizer"))
    return any(isinstance(part, Mapping) and part.get("pin_memory") for part in parts)


def deepspeed_stage(draft: Draft) -> int:
    """ZeRO's stage; 0 without DeepSpeed."""
    return derive_zero(draft).stage


def _read_json(name: str, directory: Path | None) -> Mapping[str, Any] | None:
    for place in (Path(name), *((directory / name,) if directory else ())):
        try:
            if place.is_file() and place.stat().st_size <= MAX_JSON_BYTES:
                content = json.loads(place.read_text(encoding="utf-8"))
                return content if isinstance(content, Mapping) else None
        except (OSError, ValueError, RecursionError):
            continue
    return None
