"""A vLLM engine in the trainer's process: it uses a share of the card in addition to the figures of training.

Source: TRL 1.14.1 `generation/vllm_generation.py` `_init_vllm` (it starts after policy and reference are loaded;
`gpu_memory_utilization` is its share; `sleep(level=2)` after each generation frees weights and key-value cache). vLLM
uses its share of the card with every model: the part that the weights do not need becomes key-value cache. It refuses
to start if less of the card is free.
"""

from __future__ import annotations

from collections.abc import Mapping

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.types import Engine, Peak, PhaseUse

ENGINE_PHASES = ("generate",)
"""Phases of a step in which a sleeping engine is awake."""


def make_engine(recipe: Recipe, peak: Peak, phases: Mapping[str, PhaseUse]) -> Engine | None:
    """The engine's figures on the named card; None without an engine in the trainer's process, or without a card."""
    rollouts, memory_bytes = recipe.objective.rollouts, recipe.gpu.memory_bytes
    if rollouts is None or rollouts.engine != "vllm_colocate" or not memory_bytes:
        return None
    share_bytes = int(rollouts.engine_share * memory_bytes)
    taken = recipe.gpu.outside_bytes + (phases["load"].reserved_bytes if "load" in phases else 0)
    free_bytes = max(0, memory_bytes - taken)
    beside = peak.device_bytes
    if rollouts.engine_sleeps:
        awake = [
            use.reserved_bytes for step in phases.values() for name, use in step.phases.items() if name in ENGINE_PHASES
        ]
        beside = recipe.gpu.outside_bytes + max(awake, default=0)
    return Engine(
        name="vLLM",
        share=rollouts.engine_share,
        bytes=share_bytes,
        sleeps=rollouts.engine_sleeps,
        free_at_start_bytes=free_bytes,
        starts=share_bytes <= free_bytes,
        together_bytes=max(peak.device_bytes, beside + share_bytes),
    )
