"""Whether, when and on what the run evaluates. Source: axolotl `core/builders/base.py`
`_configure_save_and_eval_strategy`, `core/builders/causal.py` `build_collator`, `core/trainers/base.py`
`_create_multipack_sampler`, `utils/config/__init__.py` `normalize_config`."""

from __future__ import annotations

from axmem_trace.config.derive.batch import packed_sizes, padded_length, row_tokens_of_trl
from axmem_trace.config.derive.objective import is_paired
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Batch, Evaluation


def derive_evaluation(draft: Draft, batch: Batch) -> Evaluation:
    """`Evaluation` from the keys. If axolotl evaluates, it also evaluates before the first step, unless `eval_on_start` is
    false.

    The Trainer keeps no logits (`prediction_loss_only`), because axolotl sets no `compute_metrics`.
    """
    enabled, why, key = _evaluates(draft)
    draft.reason("evaluation.enabled", enabled, why, key=key, origin="derived")
    if not enabled:
        return Evaluation()
    micro = draft.get("micro_batch_size") or 1
    pairs, own_rows = is_paired(draft), bool(draft.get("rl"))
    packing = False if pairs or own_rows else draft.get("eval_sample_packing")
    if packing is None:
        packing = bool(draft.get("sample_packing")) and not draft.get("eval_table_size")
    rows = (draft.get("eval_batch_size") or micro) * (1 + pairs)
    length = draft.get("eval_sequence_len") or draft.get("sequence_len") or 512
    if packing and draft.get("sample_packing"):
        rows, row_tokens, packed = *_packed_evaluation(draft, batch, rows), True
    elif packing:
        # only the collator packs: it joins the samples of a batch into one row (`build_collator`)
        rows, row_tokens, packed = 1, padded_length(draft, rows * length), True
    else:
        row_tokens, packed = row_tokens_of_trl(draft, length) if own_rows else padded_length(draft, length), False
    given = next((key for key in ("eval_batch_size", "eval_sequence_len") if draft.has(key)), "")
    text = f"`{given}`" if given else "as many as in training"
    draft.reason("evaluation.rows", rows, text, key=given, origin=None if given else "derived")
    generated_rows, generated_tokens = _generated(draft, rows, row_tokens)
    return Evaluation(
        enabled=True,
        before_training=_starts_with_evaluation(draft),
        rows=rows,
        row_tokens=row_tokens,
        packed=packed,
        generated_rows=generated_rows,
        generated_tokens=generated_tokens,
    )


def _generated(draft: Draft, rows: int, row_tokens: int) -> tuple[int, int]:
    """Rows that are generated at once, and tokens of each.

    Source: axolotl `utils/callbacks/__init__.py` `CausalLMBenchEvalCallback`, whose prompts are at most as long as a row;
    `utils/generation/sft.py` `generate_samples`, which uses a part of one row as the prompt.
    """
    if draft.get("do_causal_lm_eval"):
        new = draft.get("eval_max_new_tokens") or 128
        text = "prompts are assumed to be as long as a row; the key-value cache and the last logits are counted"
        draft.note("assumed", "do_causal_lm_eval", text)
        return rows, row_tokens + int(new)
    if draft.get("generate_samples"):
        new, share = draft.get("generation_max_new_tokens") or 50, draft.get("generation_prompt_ratio")
        text = "one row is generated at a time; its key-value cache and the last logits are counted"
        draft.note("assumed", "generate_samples", text)
        return 1, int(row_tokens * (0.5 if share is None else share)) + int(new)
    return 0, 0


def _packed_evaluation(draft: Draft, batch: Batch, rows: int) -> tuple[int, int]:
    """The number of rows and the tokens of each.

    Until 0.20.0 they are those of the training batch; later, those of `rows` packed samples of `sequence_len` tokens.
    """
    if draft.release.behaviour.packed_evaluation_uses_train_batch:
        return batch.rows, batch.row_tokens
    return packed_sizes(draft, rows, draft.get("sequence_len") or 512)[:2]


def _starts_with_evaluation(draft: Draft) -> bool:
    """`eval_on_start`, a key since 0.21.0; older releases drop it and always begin with an evaluation."""
    return draft.get("eval_on_start") is not False


def _evaluates(draft: Draft) -> tuple[bool, str, str]:
    """Whether the run evaluates, why, and the key that decides."""
    behaviour, strategy = draft.release.behaviour, draft.get("eval_strategy")
    if not (draft.get("val_set_size") or draft.get("test_datasets")):
        return False, "no val_set_size and no test_datasets", ""
    if strategy == "no" and not behaviour.evaluates_at_start_always:
        return False, "`eval_strategy: no`", "eval_strategy"
    first = "before step 1" if _starts_with_evaluation(draft) else "after the first steps (`eval_on_start: false`)"
    if draft.get("eval_steps"):
        return True, f"`eval_steps`; the first evaluation comes {first}", "eval_steps"
    per_epoch = draft.get("evals_per_epoch")
    if per_epoch and 1.0 / (per_epoch * (draft.get("num_epochs") or 1.0)) < 1.0:
        return True, f"`evals_per_epoch`; the first evaluation comes {first}", "evals_per_epoch"
    if per_epoch and not strategy:
        return False, "`evals_per_epoch` times num_epochs is not above 1: axolotl skips evaluation", "evals_per_epoch"
    if strategy == "no":
        text = f"axolotl {draft.release.version} evaluates before step 1 with `eval_strategy: no` too (`eval_on_start`)"
        return True, text, "eval_strategy"
    if strategy:
        return True, f"`eval_strategy`; the first evaluation comes {first}", "eval_strategy"
    return False, "neither eval_steps, evals_per_epoch nor eval_strategy is set: the Trainer never evaluates", ""
