"""The settings of DeepSpeed: a JSON file, one of axolotl's standard files by name, or a mapping.

Source: deepspeed 0.19.8 `runtime/zero/config.py` `DeepSpeedZeroConfig`, `runtime/config.py`, `runtime/precision_config.py`
(defaults; 0.18.9 differs in `check_grad_overflow`); transformers 5.20 `integrations/deepspeed.py`
`trainer_config_process`, `trainer_config_finalize` (the values that replace "auto").
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from axmem_trace.config.derive.deepspeed_files import STOCK
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.model import Dtype
from axmem_trace.recipe.parallel import Zero

MAX_JSON_BYTES = 1 << 20
AUTO = -1
"""In a recipe: the size follows the model."""
_DTYPES: Mapping[str, Dtype] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "bfp16": "bfloat16"}


def derive_zero(draft: Draft) -> Zero:
    """`Zero` from the key `deepspeed`; stage 0 if it is not given, or has no ZeRO settings.

    If the file is not here but has the name of one of axolotl's files, it is assumed to be axolotl's.
    """
    found = find_settings(draft)
    return _make_zero(draft, *found) if found is not None else Zero()


def find_settings(draft: Draft) -> tuple[Mapping[str, Any], str] | None:
    """The content of DeepSpeed's JSON and its origin; None if there is no JSON or its content is unknown."""
    value = draft.get("deepspeed")
    if isinstance(value, Mapping):
        return value, "the configuration"
    if not isinstance(value, str) or not value:
        return None
    found = _read_json(value, draft.directory)
    if found is not None:
        return found, value
    stock = STOCK.get(Path(value).stem)
    return (stock, f"axolotl's {Path(value).name}") if stock is not None else None


def note_file(draft: Draft) -> None:
    """Says which file's settings are used if the named file is not here."""
    value, found = draft.get("deepspeed"), find_settings(draft)
    if not isinstance(value, str) or not value:
        return
    if found is None:
        text = f"{value} is not here, and axolotl has no file of this name: its content is unknown"
        draft.note("not_modelled", "deepspeed", text, direction="either")
    elif found[1].startswith("axolotl's "):
        text = "the file is not here; axolotl's file of this name is used"
        draft.reason("parallel.zero", Path(value).name, text, key="deepspeed")


def _make_zero(draft: Draft, settings: Mapping[str, Any], source: str) -> Zero:
    zero = sub(settings, "zero_optimization")
    default, stage = Zero(), zero.get("stage")
    release = draft.release.behaviour.deepspeed

    def size(*keys: str, otherwise: int) -> int:
        value = next((zero[key] for key in keys if key in zero), otherwise)
        return AUTO if value == "auto" else value if isinstance(value, int) else int(float(value))

    stage = stage if isinstance(stage, int) else 0
    overlaps = zero.get("overlap_comm")
    legacy = {"device": "cpu"} if zero.get("cpu_offload") else None
    offload, params = zero.get("offload_optimizer", legacy), zero.get("offload_param")
    return Zero(
        stage=stage,
        deepspeed=release,
        reduce_bucket_elements=size("reduce_bucket_size", otherwise=default.reduce_bucket_elements),
        prefetch_bucket_elements=size(
            "stage3_prefetch_bucket_size", "prefetch_bucket_size", otherwise=default.prefetch_bucket_elements
        ),
        persistence_elements=size(
            "stage3_param_persistence_threshold", "param_persistence_threshold", otherwise=default.persistence_elements
        ),
        model_persistence_elements=size(
            "stage3_model_persistence_threshold", "model_persistence_threshold", otherwise=sys.maxsize
        ),
        max_live_elements=size(
            "stage3_max_live_parameters", "max_live_parameters", otherwise=default.max_live_elements
        ),
        max_reuse_elements=size(
            "stage3_max_reuse_distance", "max_reuse_distance", otherwise=default.max_reuse_elements
        ),
        sub_group_elements=size("sub_group_size", otherwise=default.sub_group_elements),
        overlaps=stage == 3 if overlaps is None else bool(overlaps),
        # an optimizer on the CPU needs contiguous gradients (`DeepSpeedZeroOptimizer.__init__`)
        contiguous_gradients=bool(zero.get("contiguous_gradients", True)) or bool(_device(offload)),
        reduce_scatter=bool(zero.get("reduce_scatter", True)),
        reduces_together=bool(zero.get("use_multi_rank_bucket_allreduce", True)),
        round_robin=bool(zero.get("round_robin_gradients", False)),
        communication_dtype=_DTYPES.get(str(settings.get("communication_data_type")), ""),
        gradient_clipping=_clipping(settings.get("gradient_clipping", 0.0)),
        checks_overflow=bool(sub(settings, "bf16").get("check_grad_overflow", release != "0.18.9")),
        optimizer=str(sub(settings, "optimizer").get("type", "")),
        forces_cpu_optimizer=bool(settings.get("zero_force_ds_cpu_optimizer", True)),
        offload_optimizer=_device(offload),
        offload_params=_device(params),
        pins_optimizer=_is_pinned(offload),
        pins_params=_is_pinned(params),
        gathers_on_save=bool(
            zero.get("stage3_gather_16bit_weights_on_model_save", zero.get("gather_16bit_weights_on_model_save", False))
        ),
        source=source,
    )


def sub(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of the JSON; empty if it is not there."""
    value = settings.get(key)
    return value if isinstance(value, Mapping) else {}


def _clipping(value: object) -> float:
    if value == "auto":
        return float(AUTO)
    return float(value) if isinstance(value, int | float) else 0.0


def _device(said: object) -> Literal["", "cpu", "nvme"]:
    device = said.get("device") if isinstance(said, Mapping) else ""
    return cast(Literal["", "cpu", "nvme"], device) if device in ("cpu", "nvme") else ""


def _is_pinned(said: object) -> bool:
    return isinstance(said, Mapping) and bool(said.get("pin_memory"))


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
