"""Effects of a training method that the author of a configuration may not expect: keys without effect, hidden copies of
the model, settings with which the trainer fails.

Source: axolotl 0.21 and 0.19 `core/builders/rl.py`, `core/trainers/{dpo,grpo,ebft}/`, `train.py`; TRL 1.14.1 and 1.9.0
`trainer/{dpo,kto,grpo}_trainer.py`, `trainer/grpo_config.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axmem_trace.config.derive.objective import CHUNKED, DROPOUT_OFF, GENERATING
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.objective import Objective
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.recipe.run import VALIDATED_LORA_KERNEL_KEYS

OWN_LOSSES = ("liger_fused_linear_cross_entropy", "liger_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy")
ADAPTER_OF_TRL = ("dpo", "ipo", "kto")
"""Methods whose adapter is created by TRL, in its trainer."""


def note_objective(draft: Draft, recipe: Recipe) -> None:
    """Adds notes on effects of the method and on keys without effect, and refusals for settings with which the trainer
    fails."""
    objective = recipe.objective
    if not objective.is_preference:
        return
    for key, why in _without_effect(draft, objective):
        draft.note("ignored", key, f"`{key}` has no effect: {why}")
    _note_reference(draft, objective)
    _note_shared_reference(draft, recipe)
    _note_loss(draft, objective)
    _refuse_in_trl(draft, objective)
    if objective.rollouts is not None:
        _note_rollouts(draft, recipe)
    elif objective.method == "ebft":
        text = (
            "EBFT's strided mode is not in the figures: it generates with whole forwards and keeps the graphs of all "
            "samples. The figures are for one supervised step of the same batch shape (the run needs more)"
        )
        draft.note("not_modelled", "rl", text, direction="more")
    if objective.rollouts is not None:
        _refuse_rollouts(draft, recipe)


def _note_reference(draft: Draft, objective: Objective) -> None:
    reference = objective.reference
    if reference.dtype == "float32":
        text = (
            f"TRL itself loads the reference of a full fine-tune with `rl: {objective.method}`, in float32: 4 bytes per "
            "weight. axolotl has already loaded a copy in the training dtype, which is never used"
        )
        draft.note("warning", "rl", text)
    elif reference.unused_copy:
        text = f"axolotl loads a second copy of the model for `rl: {objective.method}`, which is never used"
        draft.note("warning", "rl", text)
    if reference.kind == "precomputed" and reference.resident_model:
        text = "the reference model stays on the GPU nevertheless: axolotl passes it to the trainer"
        draft.note("warning", "precompute_ref_log_probs", text)
    if objective.method in ADAPTER_OF_TRL and draft.get("lora_model_dir"):
        text = f"with `rl: {objective.method}` the adapter in lora_model_dir is not loaded: a new one is trained"
        draft.note("warning", "lora_model_dir", text)


def _note_loss(draft: Draft, objective: Objective) -> None:
    method = objective.method
    if method == "simpo" and objective.likelihood and draft.get("cpo_alpha") is None:
        text = (
            "a log-likelihood of the chosen texts is part of SimPO's loss unless `cpo_alpha: 0` is set: it needs two more "
            "copies of the chosen rows' logits"
        )
        draft.note("warning", "rl", text)
    if method in ("dpo", "ipo") and draft.get("pad_to_multiple_of"):
        text = "axolotl's collator reads columns that TRL does not write for DPO: the first batch is likely to fail"
        draft.note("warning", "pad_to_multiple_of", text)
    key = liger_key(draft, objective)
    if key and not objective.chunked:
        text = (
            f"`{key}` runs a loss of liger-kernel in this release, which is not modelled: the figures are with a loss that "
            "keeps all logits. Liger's loss computes the logits of one pair at a time, and gradients of the whole head (2 "
            "to 4 times its size) even if the head is frozen"
        )
        draft.note("not_modelled", key, text, line=draft.line(key), direction="either", touches="activations")


def liger_key(draft: Draft, objective: Objective) -> str:
    """The key that requests a loss without logits; empty if none does."""
    key = "trl.use_liger_loss" if objective.method in GENERATING else CHUNKED.get(objective.method, "")
    return key if key and value_of(draft, key) else ""


def value_of(draft: Draft, key: str) -> Any:
    """The value of a key or of one in a block (`trl.beta`)."""
    top, _, inner = key.partition(".")
    return draft.sub(top).get(inner) if inner else draft.get(top)


def _note_rollouts(draft: Draft, recipe: Recipe) -> None:
    rollouts, rows = recipe.objective.rollouts, recipe.batch.rows
    assert rollouts is not None
    if rollouts.steps_per_generation > 1:
        text = (
            f"{rows * rollouts.steps_per_generation} rows are generated and scored together ({rows} x "
            f"{rollouts.steps_per_generation} micro-batches): more gradient accumulation needs more memory here"
        )
        draft.note("ruled", "gradient_accumulation_steps", text)
    if not draft.sub("trl").get("num_generations"):
        text = f"`trl.num_generations` is not set: {rollouts.num_generations} completions of each prompt, TRL's default"
        draft.note("ruled", "trl.num_generations", text, line=draft.line("trl") or draft.line("rl"))
    if recipe.objective.method in GENERATING and not draft.sub("trl").get("reward_funcs"):
        text = "without `trl.reward_funcs` TRL fails: nothing rewards the completions"
        draft.note("warning", "trl.reward_funcs", text, line=draft.line("trl") or draft.line("rl"))
    if rollouts.engine == "vllm_colocate":
        given = draft.sub("vllm").get("gpu_memory_utilization") is not None
        whose = "`vllm.gpu_memory_utilization`" if given else "the default: `vllm.gpu_memory_utilization` is not set"
        text = f"the vLLM engine takes {rollouts.engine_share:g} of the card in addition ({whose})"
        draft.note("ruled", "trl.vllm_mode", text, line=draft.line("trl.vllm_mode"))


def _note_shared_reference(draft: Draft, recipe: Recipe) -> None:
    """TRL 1.14.1 `models/utils.py`: `prepare_fsdp` shards a second model, `prepare_deepspeed` only with ZeRO-3."""
    if not recipe.objective.reference.resident_model:
        return
    zero = recipe.parallel.zero
    if recipe.parallel.engine == "fsdp2":
        text = (
            "each GPU keeps its shard of the reference model, but gathers the whole model to compute log-probabilities: TRL "
            "makes it one FSDP2 unit"
        )
        draft.note("warning", "rl", text)
    elif recipe.parallel.engine in ("ddp", "zero1", "zero2"):
        draft.note("warning", "rl", "each GPU keeps the whole reference model")
    elif recipe.parallel.engine == "zero3" and -1 in (zero.persistence_elements, zero.prefetch_bucket_elements):
        text = (
            '"auto" in DeepSpeed\'s JSON depends on the model only for the policy: TRL prepares the reference earlier, with '
            "DeepSpeed's defaults (50,000,000 elements prefetched, parameters of up to 100,000 elements not sharded)"
        )
        draft.note("ruled", "deepspeed", text)


def _refuse_in_trl(draft: Draft, objective: Objective) -> None:
    """Refuses settings with which the trainer certainly fails; the figures are still shown."""
    method, micro = objective.method, draft.get("micro_batch_size") or 1
    if method == "kto" and micro < 2:
        problem = "TRL fails: KTO compares with the completion of another row, and a micro batch of 1 has none"
        draft.refuse(problem, "micro_batch_size", remedy="set `micro_batch_size: 2` or more")
    if method == "simpo" and draft.get("simpo_gamma") is None:
        problem = "the first loss fails: axolotl passes an unset simpo_gamma to TRL as null, and TRL divides it by beta"
        draft.refuse(problem, "rl", remedy="set simpo_gamma, such as 0.5")
    if method == "simpo" and draft.get("warmup_ratio"):
        problem = "axolotl refuses this: warmup_ratio is not supported with rl: simpo"
        draft.refuse(problem, "warmup_ratio", remedy="set warmup_steps")
    if "exo_pair" in objective.loss_types and not objective.label_smoothing:
        problem = "TRL fails: exo_pair needs label smoothing above 0"
        draft.refuse(problem, "dpo_loss_type", remedy="set dpo_label_smoothing, such as 0.001")
    _refuse_liger(draft, objective)
    kernels = [key for key in VALIDATED_LORA_KERNEL_KEYS if draft.get(key)]
    if method in ADAPTER_OF_TRL and kernels and draft.get("adapter") and draft.release.is_before("0.21.0"):
        problem = (
            f"axolotl fails: it puts {kernels[0]} into the model before TRL has added the adapter (until axolotl 0.20)"
        )
        draft.refuse(problem, kernels[0], remedy="remove it")


def _refuse_liger(draft: Draft, objective: Objective) -> None:
    """TRL's checks of `use_liger_kernel`: options that need logits, and an adapter on the head."""
    key = liger_key(draft, objective)
    if not key:
        return
    if objective.weighted:
        problem = f"TRL fails: weighted DPO needs logits, which {key} does not compute"
        draft.refuse(problem, "dpo_use_weighting", remedy="remove one of them")
    if draft.get("adapter") and "lm_head" in (draft.get("lora_target_modules") or ()):
        problem = f"TRL fails: {key} uses the head's weights directly, and the adapter on lm_head would not be trained"
        draft.refuse(problem, "lora_target_modules", remedy=f"remove lm_head from them, or {key}")
    if objective.chunked or objective.method in GENERATING:
        return
    if objective.reference.kind == "precomputed":
        problem = f"TRL fails: {key} does not support precomputed references before TRL 1.14"
        draft.refuse(problem, "precompute_ref_log_probs", remedy="remove one of them")
    if len(objective.loss_types) > 1:
        problem = f"TRL fails: {key} supports only one loss type before TRL 1.14"
        draft.refuse(problem, "dpo_loss_type", remedy="keep one of them")


def _refuse_rollouts(draft: Draft, recipe: Recipe) -> None:
    """Refuses settings of GRPO that TRL's trainer does not accept."""
    trl, rollouts = draft.sub("trl"), recipe.objective.rollouts
    assert rollouts is not None
    if rollouts.num_generations < 2:
        problem = "TRL fails: the advantage of a completion needs another completion of the same prompt"
        draft.refuse(problem, "trl.num_generations", remedy="set it to 2 or more")
    elif recipe.evaluation.enabled:
        rows = recipe.evaluation.rows * max(1, recipe.parallel.num_gpus)
        if rows % rollouts.num_generations:
            problem = (
                f"TRL fails: an evaluation batch has {rows} rows (eval_batch_size x GPUs), which is not a multiple of the "
                f"{rollouts.num_generations} completions of each prompt"
            )
            draft.refuse(problem, "eval_batch_size", remedy="make it a multiple of trl.num_generations")
    if trl.get("sync_ref_model") and recipe.objective.method in GENERATING:
        if recipe.objective.reference.kind == "none":
            problem = "TRL fails: there is no reference to synchronise, because beta is 0"
            draft.refuse(problem, "trl.sync_ref_model", remedy="set trl.beta, or remove it")
        elif draft.get("adapter"):
            problem = "TRL fails: with an adapter there is no separate reference model to synchronise"
            draft.refuse(problem, "trl.sync_ref_model", remedy="remove it")
    if recipe.parallel.engine == "fsdp2" and recipe.adapter.kind != "none" and rollouts.engine == "transformers":
        problem = (
            "the first generation fails: peft generates with the inner model, but FSDP2 gathers embeddings and head only "
            "when the outer model is called"
        )
        draft.refuse(problem, "rl", remedy="generate with vLLM (trl.use_vllm), or train without FSDP")
    if recipe.objective.method == "gdpo" and draft.get("adapter"):
        problem = (
            "TRL fails: with rl: gdpo axolotl passes it the adapter's settings together with a model that already has the "
            "adapter"
        )
        draft.refuse(
            problem, "adapter", remedy="use `rl: grpo` with `trl.multi_objective_aggregation: normalize_then_sum`"
        )
    if (draft.get("context_parallel_size") or 1) > 1 and recipe.objective.method in GENERATING:
        problem = (
            "the first generation fails: axolotl's trainer for context parallelism reads max_prompt_length, which TRL no "
            "longer has"
        )
        draft.refuse(problem, "context_parallel_size", remedy="remove it")
    if rollouts.engine == "vllm_colocate" and not draft.sub("vllm") and draft.release.is_before("0.21.0"):
        problem = "axolotl fails: it reads gpu_memory_utilization from the vllm block, which is missing"
        draft.refuse(problem, "trl.vllm_mode", remedy="add `vllm: {gpu_memory_utilization: 0.3}`")


def _without_effect(draft: Draft, objective: Objective) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    method = objective.method

    def ignored(key: str, when: bool, why: str) -> None:
        top, _, inner = key.partition(".")
        value: Any = draft.sub(top).get(inner) if inner else draft.values.get(top)
        if when and value:
            found.append((key, why))

    ignored("max_prompt_len", True, "axolotl passes it to no trainer")
    _preference_keys(ignored, objective, adapter=bool(draft.get("adapter")))
    generates = method in GENERATING
    ignored("trl.generation_kwargs", generates, "axolotl does not pass it to TRL")
    ignored("trl.chat_template_kwargs", generates, "axolotl does not pass it to TRL")
    ignored("trl.sync_ref_model", not (generates or method == "ebft"), "axolotl passes it to GRPO only")
    asynchronous = objective.rollouts is not None and objective.rollouts.asynchronous
    for key in ("replay_buffer_size", "streaming_partial_batch", "prefetch_depth", "vllm_sync_interval"):
        ignored(f"trl.{key}", not asynchronous, "only asynchronous GRPO uses it (trl.async_prefetch)")
    of_rl = method not in ("reward", "process_reward")
    for key in OWN_LOSSES:
        ignored(key, of_rl, "the trainer computes its loss from logits itself")
    return found


def _preference_keys(ignored: Callable[[str, bool, str], None], objective: Objective, *, adapter: bool) -> None:
    method = objective.method
    of_dpo = method in ("dpo", "ipo")
    ignored("dpo_padding_free", of_dpo, "TRL switches it off")
    for key in (
        "precompute_ref_log_probs",
        "dpo_use_liger_kernel",
        "dpo_use_weighting",
        "dpo_ld_alpha",
        "dpo_padding_free",
    ):
        ignored(key, not of_dpo, "axolotl passes it to DPO only")
    for key in ("dpo_loss_type", "dpo_loss_weights", "dpo_label_smoothing"):
        ignored(key, method != "dpo", "axolotl passes it to `rl: dpo` only")
    for key in ("kto_desirable_weight", "kto_undesirable_weight"):
        ignored(key, method != "kto", "only `rl: kto` uses it")
    for key in ("simpo_gamma", "cpo_alpha"):
        ignored(key, method != "simpo", "only `rl: simpo` uses it")
    ignored("center_rewards_coefficient", method != "reward", "only reward models use it")
    of_rl = method not in ("reward", "process_reward")
    ignored("pad_to_sequence_len", of_rl, "the trainer's own collator pads to the longest row")
    ignored("lora_dropout", method in DROPOUT_OFF and adapter, "TRL sets dropout to 0 for this method")
