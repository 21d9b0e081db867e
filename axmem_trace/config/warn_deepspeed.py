"""Settings in DeepSpeed's JSON that are not in the figures, or with which the run fails.

Source: deepspeed 0.19.8 `runtime/zero/config.py`, `runtime/config.py`, `runtime/zenflow/`, `runtime/superoffload/`;
transformers 5.20 `integrations/deepspeed.py` `fill_match`, `trainer_config_finalize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from axmem_trace.config.derive.deepspeed import find_settings, sub
from axmem_trace.config.document.draft import Draft
from axmem_trace.notes import Direction
from axmem_trace.recipe.recipe import Recipe

Settings = Mapping[str, Any]


class _Missing(NamedTuple):
    """A setting that is not modelled. `direction`: the run needs more or less memory than the figures say."""

    is_set: Callable[[Settings], object]
    text: str
    direction: Direction


def _zero(settings: Settings, key: str) -> Any:
    return sub(settings, "zero_optimization").get(key)


def _accumulates_apart(settings: Settings) -> bool:
    return str(sub(settings, "data_types").get("grad_accum_dtype")) in ("fp32", "float32")


def _offloads_to_disk(settings: Settings) -> bool:
    parts = (_zero(settings, "offload_optimizer"), _zero(settings, "offload_param"))
    return any(isinstance(part, Mapping) and part.get("device") == "nvme" for part in parts)


def _offloads_a_part(settings: Settings) -> bool:
    part = _zero(settings, "offload_optimizer")
    return isinstance(part, Mapping) and float(part.get("ratio", 1.0)) < 1.0


_MISSING = (
    _Missing(_accumulates_apart, "`data_types.grad_accum_dtype: fp32` keeps gradients in fp32", "more"),
    _Missing(_offloads_to_disk, "offloading to NVMe: its buffers on the GPU and the host", "either"),
    _Missing(_offloads_a_part, "`offload_optimizer.ratio` below 1 leaves a part of the optimizer on the GPU", "more"),
    _Missing(lambda s: _zero(s, "zenflow"), "ZenFlow", "either"),
    _Missing(
        lambda s: sub(sub(s, "zero_optimization"), "offload_optimizer").get("super_offload"), "SuperOffload", "either"
    ),
    _Missing(lambda s: (_zero(s, "zero_hpz_partition_size") or 1) > 1, "a second copy of the weights (hpZ)", "more"),
    _Missing(lambda s: (_zero(s, "mics_shard_size") or -1) > 0, "MiCS divides the weights among fewer ranks", "more"),
    _Missing(lambda s: _zero(s, "zero_quantized_weights"), "quantised exchange of weights", "either"),
    _Missing(lambda s: _zero(s, "zero_quantized_nontrainable_weights"), "quantised frozen weights", "either"),
    _Missing(lambda s: _zero(s, "zero_quantized_gradients"), "quantised exchange of gradients", "either"),
    _Missing(lambda s: _zero(s, "parameter_alignment"), "`parameter_alignment`", "more"),
    _Missing(
        lambda s: sub(s, "bf16").get("bf16_master_weights_and_grads"), "bf16 copies in place of fp32 ones", "less"
    ),
    _Missing(
        lambda s: sub(s, "fp16").get("fp16_master_weights_and_grads"), "fp16 copies in place of fp32 ones", "less"
    ),
    _Missing(lambda s: sub(s, "torch_autocast").get("enabled"), "DeepSpeed's own autocast", "either"),
    _Missing(
        lambda s: (sub(s, "tensor_parallel").get("autotp_size") or 1) > 1, "DeepSpeed's tensor parallelism", "either"
    ),
    _Missing(lambda s: s.get("sparse_gradients"), "sparse gradients", "either"),
    _Missing(lambda s: sub(s, "compile").get("deepcompile"), "DeepCompile", "either"),
)


def note_deepspeed(draft: Draft, recipe: Recipe) -> None:
    """Adds a note for each setting that is not modelled, and a refusal for each value with which the run fails."""
    found = find_settings(draft)
    if found is None or not recipe.parallel.engine.startswith("zero"):
        return
    settings = found[0]
    for missing in _MISSING:
        if missing.is_set(settings):
            text = f"{missing.text} (DeepSpeed) is not in the figures"
            draft.note("not_modelled", "deepspeed", text, direction=missing.direction)
    _refuse_mismatches(draft, recipe, settings)
    _note_dtype(draft, recipe, settings)
    _warn(draft, recipe)


def _refuse_mismatches(draft: Draft, recipe: Recipe, settings: Settings) -> None:
    """Values other than "auto" must be equal to those of the configuration, or the Trainer fails."""
    batch = recipe.batch
    pairs = (
        (
            "train_micro_batch_size_per_gpu",
            settings.get("train_micro_batch_size_per_gpu"),
            draft.get("micro_batch_size"),
        ),
        ("gradient_accumulation_steps", settings.get("gradient_accumulation_steps"), batch.gradient_accumulation_steps),
        ("gradient_clipping", settings.get("gradient_clipping"), recipe.optimizer.max_grad_norm),
    )
    for key, said, ours in pairs:
        if isinstance(said, int | float) and not isinstance(said, bool) and ours is not None and said != ours:
            draft.refuse(
                f"`{key}: {said}` in DeepSpeed's JSON differs from the configuration's {ours}: the Trainer fails",
                "deepspeed",
                remedy=f'set `"{key}": "auto"` there',
            )


def _note_dtype(draft: Draft, recipe: Recipe, settings: Settings) -> None:
    """The model's dtype follows the sections bf16 and fp16 of the JSON."""
    dtype = recipe.precision.load_dtype
    if dtype == "float32":
        return
    section = "bf16" if dtype == "bfloat16" else "fp16"
    enabled = sub(settings, section).get("enabled")
    if enabled is False:
        text = f"`{section}.enabled: false` in DeepSpeed's JSON differs from the configuration: the Trainer fails"
        draft.refuse(text, "deepspeed", remedy='set it to "auto"')
    elif enabled is None:
        text = f'DeepSpeed\'s JSON has no "{section}": it treats the model as fp32, which is not in the figures'
        draft.note("not_modelled", "deepspeed", text, direction="either")


def _warn(draft: Draft, recipe: Recipe) -> None:
    """Effects that users do not expect."""
    zero, optimizer = recipe.parallel.zero, recipe.optimizer.name
    if zero.stage < 3 and zero.reduce_bucket_elements >= 100_000_000 and zero.contiguous_gradients:
        count = 2 if zero.overlaps else 1
        gib = count * zero.reduce_bucket_elements * 2 / 2**30
        text = (
            f"the buckets for reducing gradients take {gib:.1f} GiB on each GPU, however few parameters are trained "
            f"({count} x reduce_bucket_size {zero.reduce_bucket_elements:,}): a smaller reduce_bucket_size takes less"
        )
        draft.note("warning", "deepspeed", text)
    if zero.offload_optimizer and zero.forces_cpu_optimizer and not zero.optimizer:
        text = f"DeepSpeed's CPU optimizer runs instead of {optimizer}, because the optimizer is offloaded"
        draft.note("warning", "optimizer", text)
    if zero.stage == 3:
        _warn_of_stage_3(draft, recipe)


def _warn_of_stage_3(draft: Draft, recipe: Recipe) -> None:
    zero, checkpointing = recipe.parallel.zero, recipe.checkpointing
    if zero.deepspeed == "0.18.9":
        text = (
            "this axolotl uses DeepSpeed 0.18. Its ZeRO-3 prefetches weights and casts adapters in another way than that of "
            "0.19, which the figures follow"
        )
        draft.note("not_modelled", "deepspeed", text, direction="either")
    if (
        zero.keeps_recomputed
        and recipe.adapter.kind != "none"
        and checkpointing.enabled
        and checkpointing.use_reentrant
    ):
        text = (
            "with reentrant checkpointing DeepSpeed 0.19 gathers frozen weights for the recomputation and keeps them until "
            "backward ends: each GPU then has the whole base model. `gradient_checkpointing_kwargs: {use_reentrant: false}` "
            "frees them layer by layer"
        )
        draft.note("warning", "gradient_checkpointing", text)
    if recipe.quantisation.method != "none":
        text = "ZeRO-3 loads the whole quantised model on each GPU and shards it afterwards, except the quantisation states"
        draft.note("warning", "deepspeed", text)
    if zero.overlaps:
        text = (
            "reserved memory: gathered weights are freed while the GPU still uses them. The CPU is assumed to run so far "
            "ahead that no such block is reused within a step. The run may reserve less; PyTorch waits if the card is full"
        )
        draft.note("assumed", "deepspeed", text)
    if recipe.objective.method in ("grpo", "gdpo", "ebft"):
        text = "ZeRO-3 gathers all weights on each GPU to generate (ds3_gather_for_generation): not in the figures"
        draft.note("not_modelled", "deepspeed", text, direction="more")
    reference = recipe.objective.reference
    if reference.kind == "precomputed" and not reference.resident_model:
        text = (
            "TRL computes the reference's log-probabilities in a second ZeRO-3 engine around the same model. Its hooks and "
            "its weights that are not sharded remain during training: not in the figures"
        )
        draft.note("not_modelled", "precompute_ref_log_probs", text, direction="more")
