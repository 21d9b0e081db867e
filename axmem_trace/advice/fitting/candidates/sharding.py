"""The model is sharded across several GPUs, with FSDP2 or DeepSpeed's ZeRO.

Each card has a part of the parameters, gradients and optimizer states, and gathers a layer when it needs it. The
accumulation steps are divided by the number of cards if that is possible, so the effective batch stays the same. If it
is not possible, the change needs `--allow effective_batch`. If the command line gives the number of GPUs, only the
engine changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation

COUNTS = (2, 4, 8)
_ZERO_3 = "deepspeed_configs/zero3_bf16.json"
"""A file that `axolotl fetch deepspeed_configs` downloads."""
_FSDP2 = {
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "state_dict_type": "FULL_STATE_DICT",
    "reshard_after_forward": True,
    "offload_params": False,
    "cpu_ram_efficient_loading": True,
}


def propose_fsdp(situation: Situation) -> Iterator[Change]:
    """FSDP2 on more cards, or on the existing cards."""
    if situation.recipe.parallel.engine not in ("none", "ddp"):
        return
    for count in _counts(situation):
        engine = {**_without(situation, "deepspeed", "fsdp"), "fsdp_version": 2, "fsdp_config": _FSDP2}
        yield _change(situation, count, {**engine, "dp_shard_size": count})


def propose_zero(situation: Situation) -> Iterator[Change]:
    """ZeRO-3 with axolotl's own file, on more cards or on the existing cards."""
    if situation.recipe.parallel.engine not in ("none", "ddp"):
        return
    for count in _counts(situation):
        without = _without(situation, "fsdp", "fsdp_config", "fsdp_version")
        yield _change(situation, count, {**without, "deepspeed": _ZERO_3})


def _counts(situation: Situation) -> tuple[int, ...]:
    given = situation.recipe.parallel.num_gpus
    if situation.num_gpus_is_open:
        return tuple(count for count in COUNTS if count > given)
    return (given,) if given > 1 else ()


def _change(situation: Situation, count: int, settings: dict[str, Any]) -> Change:
    batch, before = situation.recipe.batch, situation.recipe.parallel.num_gpus
    steps, rest = divmod(batch.gradient_accumulation_steps * before, count)
    if count == before:
        return Change(settings=settings, cost="layers are gathered in each step: slower")
    if rest or not steps:
        return Change(
            settings=settings, num_gpus=count, allow="effective_batch", cost=f"{count} cards; the effective batch grows"
        )
    settings |= {"gradient_accumulation_steps": steps} if steps != batch.gradient_accumulation_steps else {}
    return Change(settings=settings, num_gpus=count, cost=f"{count} cards; the same effective batch")


def _without(situation: Situation, *keys: str) -> dict[str, None]:
    return {key: None for key in keys if situation.values.get(key) is not None}


FSDP = Candidate(
    name="fsdp2",
    about=__doc__,
    cost="more cards",
    grade=Grade.GPUS,
    group="engine",
    propose=propose_fsdp,
    steps=True,
    slow=True,
)
ZERO = Candidate(
    name="zero3",
    about=__doc__,
    cost="more cards",
    grade=Grade.GPUS,
    group="engine",
    propose=propose_zero,
    steps=True,
    slow=True,
)
