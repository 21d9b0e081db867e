"""The settings of a run in words: one short phrase for each topic. Only the recipe is used."""

from __future__ import annotations

from collections.abc import Sequence

from axmem_trace.recipe.parallel import engine_name
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.rank_types import RankUse
from axmem_trace.units import format_bytes


def describe_run(recipe: Recipe, ranks: Sequence[RankUse] = ()) -> dict[str, str]:
    """Phrases by topic, in the order of reading.

    Args:
        ranks: those of a run on several GPUs; rank 0 is in the first row.
    """
    silent = {"log": "none"} if recipe.objective.is_preference else {}
    return {
        "config": recipe.name,
        "method": _method(recipe),
        **({"ranks": describe_ranks(recipe, ranks)} if recipe.parallel.num_gpus > 1 else {}),
        "base": _base(recipe),
        "precision": _precision(recipe),
        "optimizer": f"{recipe.optimizer.name} ({recipe.optimizer.implementation})",
        "attention": recipe.attention.kernel,
        "checkpointing": _checkpointing(recipe),
        "loss": _loss(recipe),
        "batch": _batch(recipe),
        "evaluation": f"{recipe.evaluation.rows} x {recipe.evaluation.row_tokens} tokens"
        if recipe.evaluation.enabled
        else "none",
        "allocator": recipe.allocator.settings or "PyTorch's defaults",
        **silent,
    }


_TRAINED_FOR = {
    "dpo": "DPO",
    "ipo": "IPO",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "kto": "KTO",
    "grpo": "GRPO",
    "gdpo": "GDPO",
    "ebft": "EBFT",
    "reward": "reward model",
    "process_reward": "process reward model",
}


def describe_ranks(recipe: Recipe, ranks: Sequence[RankUse] = ()) -> str:
    """The number of GPUs, their mesh, and the ranks whose figures are shown."""
    parallel = recipe.parallel
    text = f"{parallel.num_gpus} GPUs"
    if parallel.count_is_assumed:
        text += " (assumed, the smallest number for this)"
    if parallel.num_nodes > 1:
        text += f" on {parallel.num_nodes} machines"
    shared = f", rows divided among {parallel.context.size}" if parallel.context.size > 1 else ""
    if parallel.engine == "ddp":
        return f"{text}, DDP{shared}: the figures are {_whose(ranks)}"
    copies = f", {parallel.mesh.replicate} copies" if parallel.mesh.replicate > 1 else ""
    name = engine_name(parallel.engine)
    if parallel.engine in ("zero1", "zero2"):
        return f"{text}, {name}: the figures are for the rank that keeps the most gradients"
    divided = f"{name}, {parallel.mesh.num_shards} shards{copies}"
    if parallel.engine == "tensor":
        divided = f"{name} of {parallel.mesh.tensor}"
        divided += f" x FSDP2, {parallel.mesh.shard} shards" if parallel.mesh.shard > 1 else ""
    return f"{text}, {divided}{shared}: the figures are {_whose(ranks)}"


def _whose(ranks: Sequence[RankUse]) -> str:
    """The ranks whose figures are shown, and the rank that needs the most, if it is another one."""
    if len(ranks) < 2:
        return "for each rank"
    worst = next(use for use in ranks if use.worst)
    if worst is ranks[0]:
        return "for rank 0; no other needs more"
    most = format_bytes(worst.device_bytes)
    return f"for rank 0, whose figures axolotl logs; rank {worst.ranks} needs the most, {most}"


def _method(recipe: Recipe) -> str:
    what = _TRAINED_FOR.get(recipe.objective.method)
    return f"{what}, {_what_trains(recipe)}" if what else _what_trains(recipe)


def _loss(recipe: Recipe) -> str:
    objective = recipe.objective
    if not objective.is_preference or objective.method == "process_reward":
        return recipe.loss.path
    names = " + ".join(objective.loss_types) or objective.method
    return f"{names}, in tiles" if objective.chunked else names


def _what_trains(recipe: Recipe) -> str:
    adapter = recipe.adapter
    if adapter.kind == "none":
        return "partial fine-tune" if recipe.freezing.unfrozen else "full fine-tune"
    variant = ", DoRA" if adapter.dora else ""
    return f"{adapter.kind}, rank {adapter.rank}{variant}" if adapter.kind != "llama-adapter" else adapter.kind


def _base(recipe: Recipe) -> str:
    quantisation = recipe.quantisation
    if quantisation.method == "none":
        return recipe.precision.load_dtype
    if quantisation.method == "bnb_4bit":
        return f"{quantisation.quant_type}{', double quantisation' if quantisation.double_quant else ''}"
    return {"bnb_8bit": "int8 (bitsandbytes)", "checkpoint": "quantised, as published"}.get(
        quantisation.method, quantisation.method
    )


def _precision(recipe: Recipe) -> str:
    precision = recipe.precision
    return f"autocast {precision.autocast_dtype}" if precision.autocast else f"no autocast, {precision.load_dtype}"


def _checkpointing(recipe: Recipe) -> str:
    checkpointing = recipe.checkpointing
    if not checkpointing.enabled:
        return "none"
    kind = "reentrant" if checkpointing.use_reentrant else "non-reentrant"
    return kind if checkpointing.offload == "none" else f"{kind}, offload: {checkpointing.offload}"


def _batch(recipe: Recipe) -> str:
    batch = recipe.batch
    text = f"{batch.rows} x {batch.row_tokens} tokens"
    if recipe.parallel.context.size > 1:
        text += f", 1/{recipe.parallel.context.size} of each row on a GPU"
    if batch.packed:
        text += f", packed ({batch.samples_per_row} samples a row)"
    if batch.gradient_accumulation_steps > 1:
        text += f", {batch.gradient_accumulation_steps} accumulation steps"
    return text
