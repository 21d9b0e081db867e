"""What is in the figures of expert parallelism, and where axolotl stops.

Source: axolotl 0.21 `integrations/expert_parallel/shard.py` `shard_expert_weights`, `plugin.py` `post_model_build`,
`expert_fsdp_mesh`; `monkeypatch/accelerate/parallelism_config.py` `_patched_dp_shard_cp_dim_names`: other weights are
sharded over all ranks of a copy, experts over the ranks that have the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.model import EXPERT_COUNTS, BaseModel
from axmem_trace.recipe.parallel import Parallel

KEY = "expert_parallel_size"


def note_experts(draft: Draft, base: BaseModel, parallel: Parallel) -> None:
    """Adds a note on what is left out, and a refusal if the experts can't be divided."""
    size = int(draft.get(KEY) or 1) if draft.is_live(KEY) else 1
    if size < 2 or parallel.num_gpus < 2:
        return
    count = _count(base.config)
    if count % size or not count:
        problem = f"axolotl stops: {count} experts can't be divided evenly among {size} GPUs"
        draft.refuse(
            problem if count else "axolotl stops: the model has no experts that it could divide",
            KEY,
            remedy="choose a divisor" if count else "remove it",
        )
    if parallel.engine != "fsdp2":
        text = f"expert parallelism is not in the figures: it spreads the experts over {size} GPUs"
        draft.note("not_modelled", KEY, text, direction="less")
        return
    text = (
        "the part of weights, gradients and optimizer states that each GPU has is in the figures; layers are gathered with "
        f"all experts there, where the run gathers 1/{size} of them, and the tokens that GPUs exchange are not counted"
    )
    draft.note("not_modelled", KEY, text, direction="either")


def _count(config: Mapping[str, Any]) -> int:
    inner = config.get("text_config")
    text = {**config, **(inner if isinstance(inner, Mapping) else {})}
    return next((int(text[name]) for name in EXPERT_COUNTS if isinstance(text.get(name), int)), 0)
