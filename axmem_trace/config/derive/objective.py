"""The training objective, and the reference model that it needs.

Source: axolotl 0.21 `core/builders/rl.py`, `core/trainers/dpo/__init__.py`, `train.py` `setup_reference_model`; TRL 1.14.1
`trainer/{dpo,kto,grpo}_trainer.py` `__init__`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from axmem_trace.config.derive.rollouts import completion_of_rollouts, derive_rollouts, trl_version
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.model import Adapter, Quantisation
from axmem_trace.recipe.objective import Features, Method, Objective, Reference
from axmem_trace.recipe.run import Batch, Evaluation

Sized = TypeVar("Sized", Batch, Evaluation)
PAIRED = ("dpo", "ipo", "simpo", "orpo")
"""Values of `rl` whose samples are a chosen and a rejected text."""
GENERATING = ("grpo", "gdpo")
CHUNKED = {"dpo": "dpo_use_liger_kernel", "ipo": "dpo_use_liger_kernel"}
DROPOUT_OFF = (*PAIRED, "kto", "reward", "process_reward")
"""TRL's `disable_dropout` is on by default (`trainer/utils.py` `disable_dropout_in_model`); in GRPO it is off."""
LABELLED = ("supervised", "process_reward", "ebft")
"""Methods that pass labels to the model, which then computes the loss."""
BFLOAT16_ADAPTERS = ("dpo", "ipo", "kto", "grpo", "gdpo", "reward", "process_reward")
"""TRL casts all trained weights on a 4-bit or 8-bit base to bf16 (`dpo_trainer.py`, `_is_quantized_model`). It does not for
ORPO and SimPO, because axolotl passes them no `peft_config`."""


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
    trl = trl_version(draft)
    draft.reason("objective.method", method, f"`{_method_key(draft)}`", key=_method_key(draft))
    rollouts = derive_rollouts(draft, num_gpus) if generates(draft, method) else None
    completion = completion_of_rollouts(draft) if rollouts else max(1, row_tokens // 2)
    prompt = _prompt_tokens(draft, completion) if rollouts else row_tokens - completion
    _note_lengths(draft, method, prompt, completion)
    return Objective(
        method=method,
        reference=_reference(draft, method),
        helpers=draft.release.behaviour.loss_helpers,
        trl=trl,
        chunked=trl >= (1, 14) and _is_liger(draft, method),
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
        features=_features(draft) if rollouts and method == "ebft" else None,
        empties_cache=draft.release.behaviour.dpo_empties_cache and method in ("dpo", "ipo"),
    )


def generates(draft: Draft, method: Method) -> bool:
    """True if the trainer is TRL's GRPO trainer or a subclass, which trains on completions that it generates."""
    return method in GENERATING or (method == "ebft" and draft.sub("ebft").get("mode") != "strided")


def is_labelled(objective: Objective) -> bool:
    """True if the model gets labels and computes the loss."""
    return objective.method in LABELLED and objective.rollouts is None


def _features(draft: Draft) -> Features:
    """Source: axolotl `core/trainers/ebft/args.py` (defaults)."""
    ebft = draft.sub("ebft")
    return Features(
        layers=tuple(float(each) for each in ebft.get("feature_layers") or (0.25, 0.5, 0.75)),
        embedding=str(ebft.get("embed_method") or "last_token"),
        whitens=bool(ebft.get("use_whitening")),
        copy=not draft.get("adapter"),
    )


def _is_liger(draft: Draft, method: Method) -> bool:
    """True if the keys request log-probabilities without logits. Asynchronous GRPO always computes logits."""
    trl = draft.sub("trl")
    if method in GENERATING:
        return bool(trl.get("use_liger_loss")) and not (trl.get("async_prefetch") or trl.get("use_data_producer"))
    return bool(draft.get(CHUNKED.get(method, "")))


def adapter_of_trainer(adapter: Adapter, objective: Objective, quantisation: Quantisation) -> Adapter:
    """The adapter after the trainer has changed it: its dropout may become 0, and its dtype bf16 over a quantised base."""
    if objective.method in DROPOUT_OFF:
        adapter = replace(adapter, dropout=0.0)
    cast = objective.method in BFLOAT16_ADAPTERS or objective.features is not None
    if adapter.kind != "none" and quantisation.method != "none" and cast:
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
    """The first of four keys that is set, for all methods (axolotl `core/builders/rl.py` `_build_training_arguments`)."""
    given = (draft.sub("trl").get("beta"), draft.get("rl_beta"), draft.get("dpo_beta"), draft.get("orpo_alpha"))
    return float(next((value for value in given if value is not None), default))


def _loss_types(draft: Draft, method: Method) -> tuple[str, ...]:
    if method == "ipo":
        return ("ipo",)
    return tuple(draft.get("dpo_loss_type") or ("sigmoid",)) if method == "dpo" else ()


def _reference(draft: Draft, method: Method) -> Reference:
    """Where the reference's log-probabilities come from, and which model is on the GPU to compute them."""
    adapter = bool(draft.get("adapter"))
    if method in ("dpo", "ipo"):
        reference = _reference_of_dpo(draft, adapter)
    elif method == "kto":
        reference = Reference(kind="adapters_off") if adapter else _loaded_by_trl()
    elif generates(draft, method) and _beta(draft, 0.0) != 0.0:
        reference = _reference_of_grpo(draft, adapter)
    else:
        unused = (method == "simpo" or generates(draft, method)) and not adapter
        reference = Reference(unused_copy=unused)
    if method in (*PAIRED, "kto") or generates(draft, method):
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
    """TRL itself loads a reference in fp32 (`create_model_from_path`); the reference that axolotl loaded is never used."""
    return Reference(kind="model", dtype="float32", resident_model=True, unused_copy=True)


def _reference_of_dpo(draft: Draft, adapter: bool) -> Reference:
    """axolotl passes its own copy to the trainer; it stays even if its log-probabilities are precomputed."""
    if draft.get("precompute_ref_log_probs"):
        return Reference(kind="precomputed", resident_model=not adapter)
    return Reference(kind="adapters_off") if adapter else Reference(kind="model", resident_model=True)


def _reference_of_grpo(draft: Draft, adapter: bool) -> Reference:
    """Before TRL 1.13 there is no copy of an adapter on fused experts (`grpo_trainer.py`, `target_parameters`)."""
    if not adapter:
        return _loaded_by_trl()
    alone = draft.get("lora_target_parameters") and trl_version(draft) < (1, 13)
    return Reference(kind="adapters_off" if alone else "adapter_copy")


def _prompt_tokens(draft: Draft, completion: int) -> int:
    """The tokens that `sequence_len` leaves for the prompt; if it leaves none, `sequence_len` itself."""
    length = int(draft.get("sequence_len") or 512)
    return length - completion if length > completion else length


def _note_lengths(draft: Draft, method: Method, prompt: int, completion: int) -> None:
    if method in ("reward", "process_reward") or (method == "ebft" and not generates(draft, method)):
        return
    if generates(draft, method):
        text = (
            f"rows are assumed to be prompts of {prompt} tokens and completions of {completion}. In the run, the longest "
            "prompt of the data decides: no key limits it, not even `sequence_len`. If you know the lengths, set --assume "
            "prompt_tokens=... completion_tokens=..."
        )
    else:
        text = (
            f"half of each row, {completion} tokens, is assumed to be completion. A longer completion means larger copies "
            "of logits for the values that the trainer logs. If you know the length, set --assume completion_tokens=..."
        )
    draft.note("assumed", "rl", text)
