"""The training objective, and the reference model that it needs.

Source: axolotl 0.21 `core/builders/rl.py`, `core/trainers/dpo/__init__.py`, `train.py` `setup_reference_model`; TRL 1.14.1
`trainer/{dpo,kto,grpo}_trainer.py` `__init__`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from axmem_trace.config.derive.rollouts import completion_of_rollouts, derive_rollouts
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.model import Adapter, Quantisation
from axmem_trace.recipe.objective import Method, Objective, Reference
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.recipe.run import Batch, Evaluation

Sized = TypeVar("Sized", Batch, Evaluation)
PAIRED = ("dpo", "ipo", "simpo", "orpo")
"""Values of `rl` whose samples are a chosen and a rejected text."""
GENERATING = ("grpo", "gdpo")
CHUNKED = {"dpo": "dpo_use_liger_kernel", "ipo": "dpo_use_liger_kernel"}
DROPOUT_OFF = (*PAIRED, "kto", "reward", "process_reward")
"""TRL's `disable_dropout` is on by default (`trainer/utils.py` `disable_dropout_in_model`); in GRPO it is off."""
LABELLED = ("supervised", "process_reward", "ebft")
"""Methods whose model gets labels and computes the loss."""
BFLOAT16_ADAPTERS = ("dpo", "ipo", "kto", "grpo", "gdpo", "reward", "process_reward")
"""TRL casts all trained weights on a 4-bit or 8-bit base to bf16 (`dpo_trainer.py`, `_is_quantized_model`). ORPO and SimPO
get no `peft_config`, and do not."""


def find_method(draft: Draft) -> Method:
    """The training method that the keys name."""
    rl: Method | None = draft.get("rl")
    if rl:
        return rl
    if draft.get("reward_model"):
        return "reward"
    return "process_reward" if draft.get("process_reward_model") else "supervised"


def is_paired(draft: Draft) -> bool:
    """True if each sample is two rows of a batch."""
    return find_method(draft) in (*PAIRED, "reward")


def derive_objective(draft: Draft, row_tokens: int, num_gpus: int) -> Objective:
    """`Objective` from the keys.

    Args:
        row_tokens: tokens of a padded row, if rows are not generated.
    """
    method = find_method(draft)
    if method == "supervised":
        return Objective()
    draft.reason("objective.method", method, f"`{_method_key(draft)}`", key=_method_key(draft))
    rollouts = derive_rollouts(draft, num_gpus) if method in GENERATING else None
    completion = completion_of_rollouts(draft) if rollouts else max(1, row_tokens // 2)
    prompt = _prompt_tokens(draft, completion) if rollouts else row_tokens - completion
    _note_lengths(draft, method, prompt, completion)
    return Objective(
        method=method,
        reference=_reference(draft, method),
        helpers=draft.release.behaviour.loss_helpers,
        chunked=bool(rollouts and draft.sub("trl").get("use_liger_loss")) or bool(draft.get(CHUNKED.get(method, ""))),
        loss_types=_loss_types(draft, method),
        loss_weights=tuple(draft.get("dpo_loss_weights") or ()) if method == "dpo" else (),
        beta=_beta(draft, 0.0 if rollouts else 0.1),
        label_smoothing=float(draft.get("dpo_label_smoothing") or 0.0) if method == "dpo" else 0.0,
        gamma=float(draft.get("simpo_gamma") or 0.0),
        length_bias=draft.get("dpo_ld_alpha") if method in ("dpo", "ipo") else None,
        weighted=bool(draft.get("dpo_use_weighting")) and method in ("dpo", "ipo"),
        likelihood=method == "orpo" or (method == "simpo" and draft.get("cpo_alpha") != 0),
        prompt_tokens=prompt,
        completion_tokens=completion,
        centring=float(draft.get("center_rewards_coefficient") or 0.0) if method == "reward" else 0.0,
        rollouts=rollouts,
    )


def adapter_of_trainer(adapter: Adapter, objective: Objective, quantisation: Quantisation) -> Adapter:
    """The adapter as the trainer leaves it: its dropout set to 0, its dtype over a quantised base."""
    if objective.method in DROPOUT_OFF:
        adapter = replace(adapter, dropout=0.0)
    if adapter.kind != "none" and quantisation.method != "none" and objective.method in BFLOAT16_ADAPTERS:
        adapter = replace(adapter, dtype="bfloat16")
    return adapter


def rows_of_objective(batch: Sized, objective: Objective) -> Sized:
    """Generated rows are as long as a prompt and a completion."""
    if objective.rollouts is None:
        return batch
    return replace(batch, row_tokens=objective.prompt_tokens + objective.completion_tokens)


def _method_key(draft: Draft) -> str:
    return next((key for key in ("rl", "reward_model", "process_reward_model") if draft.get(key)), "")


def _beta(draft: Draft, default: float) -> float:
    """axolotl `core/builders/rl.py` `_build_training_arguments`: one key after the other, the same for all methods."""
    given = (draft.sub("trl").get("beta"), draft.get("rl_beta"), draft.get("dpo_beta"), draft.get("orpo_alpha"))
    return float(next((value for value in given if value is not None), default))


def _loss_types(draft: Draft, method: Method) -> tuple[str, ...]:
    if method == "ipo":
        return ("ipo",)
    return tuple(draft.get("dpo_loss_type") or ("sigmoid",)) if method == "dpo" else ()


def _reference(draft: Draft, method: Method) -> Reference:
    """Where the reference's log-probabilities come from, and what is on the GPU for them."""
    adapter = bool(draft.get("adapter"))
    if method in ("dpo", "ipo"):
        reference = _reference_of_dpo(draft, adapter)
    elif method == "kto":
        reference = Reference(kind="adapters_off") if adapter else _loaded_by_trl()
    elif method in GENERATING and _beta(draft, 0.0) != 0.0:
        reference = Reference(kind="adapter_copy") if adapter else _loaded_by_trl()
    else:
        unused = method in ("simpo", *GENERATING) and not adapter
        reference = Reference(unused_copy=unused)
    if method in (*PAIRED, "kto", *GENERATING):
        draft.reason("objective.reference", _describe(reference), _WHY[reference.kind], origin="derived")
    return reference


_WHY = {
    "none": "the method uses no reference",
    "model": "a full fine-tune needs a second model",
    "adapters_off": "the base model, with the adapters switched off",
    "adapter_copy": "the policy with a frozen copy of its adapter, because TRL finds an adapter that exists already",
    "precomputed": "`precompute_ref_log_probs`",
}


def _describe(reference: Reference) -> str:
    if reference.kind == "precomputed" and reference.resident_model:
        return "precomputed, the model stays"
    return "a second model, float32" if reference.dtype == "float32" else reference.kind.replace("_", " ")


def _loaded_by_trl() -> Reference:
    """TRL itself loads one in fp32 (`create_model_from_path`); the model that axolotl loaded before is never used."""
    return Reference(kind="model", dtype="float32", resident_model=True, unused_copy=True)


def _reference_of_dpo(draft: Draft, adapter: bool) -> Reference:
    """axolotl passes its own copy to the trainer; it stays even if its log-probabilities are precomputed."""
    if draft.get("precompute_ref_log_probs"):
        return Reference(kind="precomputed", resident_model=not adapter)
    return Reference(kind="adapters_off") if adapter else Reference(kind="model", resident_model=True)


def _prompt_tokens(draft: Draft, completion: int) -> int:
    """The tokens that `sequence_len` leaves for the prompt; if it leaves none, `sequence_len` itself."""
    length = int(draft.get("sequence_len") or 512)
    return length - completion if length > completion else length


def _note_lengths(draft: Draft, method: Method, prompt: int, completion: int) -> None:
    if method in ("reward", "process_reward", "ebft"):
        return
    if method in GENERATING:
        text = (
            f"rows are assumed to be prompts of {prompt} tokens and completions of {completion}: the longest prompt of the "
            "data decides, and no key limits it. Set what you know: --assume prompt_tokens=... completion_tokens=..."
        )
    else:
        text = (
            f"half of each row, {completion} tokens, is assumed to be completion: more of it means larger copies of logits "
            "for what the trainer logs. Set what you know: --assume completion_tokens=..."
        )
    draft.note("assumed", "rl", text)


def note_objective(draft: Draft, objective: Objective) -> None:
    """Effects of the method that the author may not expect, and keys that have no effect on it."""
    method = objective.method
    if not objective.is_preference:
        return
    for key, why in _without_effect(draft, objective):
        draft.note("ignored", key, f"`{key}` has no effect: {why}")
    reference = objective.reference
    if reference.dtype == "float32":
        text = (
            f"TRL itself loads the reference of a full fine-tune with `rl: {method}`, in float32: 4 bytes per weight, "
            "in addition to a copy in the training dtype that axolotl loads first and that is never used"
        )
        draft.note("warning", "rl", text)
    elif reference.unused_copy:
        draft.note("warning", "rl", f"axolotl loads a second copy of the model for `rl: {method}`, which is never used")
    if reference.kind == "precomputed" and reference.resident_model:
        text = "the reference model still stays on the GPU: axolotl passes it to the trainer"
        draft.note("warning", "precompute_ref_log_probs", text)
    if objective.rollouts is not None and objective.rollouts.reward_models:
        names = ", ".join(objective.rollouts.reward_models)
        text = f"a model that rewards completions is not in the figures: {names} (the run needs more memory than shown)"
        draft.note("not_modelled", "trl.reward_funcs", text, line=draft.line("trl.reward_funcs"), direction="more")
    if method == "simpo" and objective.likelihood and draft.get("cpo_alpha") is None:
        text = (
            "a log-likelihood of the chosen texts is part of SimPO's loss unless `cpo_alpha: 0` is set: two more copies"
        )
        draft.note("warning", "rl", text + " of the chosen rows' logits")


def note_shared_reference(draft: Draft, recipe: Recipe) -> None:
    """TRL shards a second model like the policy (`models/utils.py` `prepare_fsdp`); here each rank has all of it."""
    if recipe.objective.reference.resident_model and recipe.parallel.engine in ("fsdp1", "fsdp2"):
        text = (
            "the reference is divided among the ranks, which is not in the figures: each has all of it (the run needs "
        )
        draft.note("not_modelled", "rl", text + "less memory than shown)", direction="less")


def refuse_in_trl(draft: Draft, objective: Objective) -> None:
    """Settings with which the trainer certainly stops; the figures are still shown."""
    method, micro = objective.method, draft.get("micro_batch_size") or 1
    if method == "kto" and micro < 2:
        problem = "TRL stops: KTO compares with the completion of another row, and a micro batch of 1 has none"
        draft.refuse(problem, "micro_batch_size", remedy="set `micro_batch_size: 2` or more")
    if method == "simpo" and draft.get("simpo_gamma") is None:
        problem = "the first loss fails: axolotl passes an unset simpo_gamma on as null, and TRL divides it by beta"
        draft.refuse(problem, "rl", remedy="set simpo_gamma, such as 0.5")
    if method == "simpo" and draft.get("warmup_ratio"):
        problem = "axolotl refuses this: warmup_ratio is not supported with rl: simpo"
        draft.refuse(problem, "warmup_ratio", remedy="set warmup_steps")
    if objective.weighted and objective.chunked:
        problem = "TRL stops: weighted DPO needs logits, which the tiles of dpo_use_liger_kernel do not make"
        draft.refuse(problem, "dpo_use_weighting", remedy="remove one of them")
    if "exo_pair" in objective.loss_types and not objective.label_smoothing:
        problem = "TRL stops: exo_pair needs label smoothing above 0"
        draft.refuse(problem, "dpo_loss_type", remedy="set dpo_label_smoothing, such as 0.001")
    if method in ("dpo", "ipo") and draft.get("pad_to_multiple_of"):
        text = "axolotl's collator reads other columns than TRL writes for DPO: the first batch is likely to fail"
        draft.note("warning", "pad_to_multiple_of", text)
    if method in ("dpo", "ipo", "kto") and draft.get("lora_model_dir"):
        text = f"with `rl: {method}` the adapter in lora_model_dir is not loaded: a new one is trained"
        draft.note("warning", "lora_model_dir", text)


def _without_effect(draft: Draft, objective: Objective) -> list[tuple[str, str]]:
    method = objective.method
    found: list[tuple[str, str]] = []

    def ignored(key: str, when: bool, why: str) -> None:
        top, _, inner = key.partition(".")
        value: Any = draft.sub(top).get(inner) if inner else draft.values.get(top)
        if when and value:
            found.append((key, why))

    ignored("max_prompt_len", True, "no trainer gets it")
    ignored("dpo_padding_free", method in ("dpo", "ipo"), "TRL switches it off")
    ignored("precompute_ref_log_probs", method not in ("dpo", "ipo"), "axolotl passes it to DPO only")
    ignored("dpo_use_liger_kernel", method not in ("dpo", "ipo"), "axolotl passes it to DPO only")
    of_rl = method not in ("reward", "process_reward")
    ignored("pad_to_sequence_len", of_rl, "the trainer's own collator pads to the longest row")
    switched_off = method in DROPOUT_OFF and bool(draft.get("adapter"))
    ignored("lora_dropout", switched_off, "TRL sets dropout to 0 for this method")
    ignored("trl.generation_kwargs", method in GENERATING, "axolotl does not pass it on")
    ignored("trl.chat_template_kwargs", method in GENERATING, "axolotl does not pass it on")
    for key in (
        "liger_fused_linear_cross_entropy",
        "liger_cross_entropy",
        "cut_cross_entropy",
        "chunked_cross_entropy",
    ):
        ignored(key, of_rl, "the trainer computes its loss from logits itself")
    return found
