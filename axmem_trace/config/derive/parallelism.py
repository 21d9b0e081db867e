"""What the configuration says of many GPUs. One GPU is estimated; the rest is reported in notes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Parallelism

MAX_JSON_BYTES = 1 << 20


def uses_fsdp(draft: Draft) -> bool:
    """`is_fsdp_enabled` of axolotl's `loaders/model.py`."""
    return draft.has("fsdp") or draft.has("fsdp_config")


def derive_parallelism(draft: Draft, num_gpus: int) -> Parallelism:
    """`Parallelism` from the keys; a note where more than one GPU is meant."""
    if num_gpus > 1:
        text = (
            f"{num_gpus} GPUs: the figures are of one GPU alone. Without FSDP or DeepSpeed each GPU holds the same, "
            "plus gradient buckets of data parallelism (a second copy of the trainable gradients)"
        )
        draft.note("not_modelled", "--gpus", text)
    return Parallelism(
        num_gpus=max(1, num_gpus),
        deepspeed_stage=deepspeed_stage(draft),
        fsdp_version=int(draft.get("fsdp_version") or 1) if uses_fsdp(draft) else 0,
        tensor=draft.get("tensor_parallel_size") or 1,
        context=draft.get("context_parallel_size") or 1,
        expert=draft.get("expert_parallel_size") or 1,
    )


def deepspeed_stage(draft: Draft) -> int:
    """ZeRO's stage: from the mapping, the JSON file, or the name of an axolotl stock file (`zero3_bf16.json`)."""
    value = draft.get("deepspeed")
    if isinstance(value, str) and value:
        named = re.search(r"zero_?([0-3])", Path(value).name)
        value = _read_json(value, draft.directory) or ({"zero_optimization": {"stage": int(named[1])}} if named else {})
    if not isinstance(value, Mapping):
        return 0
    zero = value.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, Mapping) else 0
    return stage if isinstance(stage, int) else 0


def _read_json(name: str, directory: Path | None) -> Mapping[str, object] | None:
    for place in (Path(name), *((directory / name,) if directory else ())):
        try:
            if place.is_file() and place.stat().st_size <= MAX_JSON_BYTES:
                content = json.loads(place.read_text(encoding="utf-8"))
                return content if isinstance(content, Mapping) else None
        except (OSError, ValueError, RecursionError):
            continue
    return None
