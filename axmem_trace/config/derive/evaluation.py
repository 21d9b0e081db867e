"""Evaluation: whether, when and on what. Source: axolotl `core/builders/base.py` `_configure_save_and_eval_strategy`,
`core/builders/causal.py` `build_collator`, `utils/callbacks/__init__.py`."""

from __future__ import annotations

from axmem_trace.config.derive.batch import padded_length, row_tokens_of_trl
from axmem_trace.config.derive.objective import is_paired
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Batch, Evaluation


def derive_evaluation(draft: Draft, batch: Batch) -> Evaluation:
    """`Evaluation`: axolotl evaluates before the first step whenever it evaluates at all (`eval_on_start`).

    The Trainer keeps no logits (`prediction_loss_only`), since axolotl sets no `compute_metrics`.
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
        rows, row_tokens, packed = batch.rows, batch.row_tokens, True
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
        before_training=True,
        rows=rows,
        row_tokens=row_tokens,
        packed=packed,
        generated_rows=generated_rows,
        generated_tokens=generated_tokens,
    )


def _generated(draft: Draft, rows: int, row_tokens: int) -> tuple[int, int]:
    """Rows at once and tokens of each: axolotl `utils/callbacks/__init__.py` `CausalLMBenchEvalCallback`, whose prompts
    are at the most a row, and `utils/generation/sft.py` `generate_samples`, which takes a part of one row."""
    if draft.get("do_causal_lm_eval"):
        new = draft.get("eval_max_new_tokens") or 128
        text = "prompts are taken to be as long as a row; the key-value cache and the last logits are counted"
        draft.note("assumed", "do_causal_lm_eval", text)
        return rows, row_tokens + int(new)
    if draft.get("generate_samples"):
        new, share = draft.get("generation_max_new_tokens") or 50, draft.get("generation_prompt_ratio")
        text = "one row is generated at a time; its key-value cache and the last logits are counted"
        draft.note("assumed", "generate_samples", text)
        return 1, int(row_tokens * (0.5 if share is None else share)) + int(new)
    return 0, 0


def _evaluates(draft: Draft) -> tuple[bool, str, str]:
    has_data = bool(draft.get("val_set_size") or draft.get("test_datasets"))
    if not has_data:
        return False, "no val_set_size and no test_datasets", ""
    if draft.get("eval_steps"):
        return True, "`eval_steps`; the first evaluation comes before step 1", "eval_steps"
    per_epoch, strategy = draft.get("evals_per_epoch"), draft.get("eval_strategy")
    if per_epoch and 1.0 / (per_epoch * (draft.get("num_epochs") or 1.0)) < 1.0:
        return True, "`evals_per_epoch`; the first evaluation comes before step 1", "evals_per_epoch"
    if per_epoch and not strategy:
        return False, "`evals_per_epoch` times num_epochs is not above 1: axolotl skips evaluation", "evals_per_epoch"
    if strategy and strategy != "no":
        return True, "`eval_strategy`; the first evaluation comes before step 1", "eval_strategy"
    return False, "neither eval_steps, evals_per_epoch nor eval_strategy is set: the Trainer never evaluates", ""
