"""The batch of one GPU in one forward of training. Source: axolotl `core/builders/causal.py` `build`,
`build_collator`; `core/trainers/base.py` `_create_multipack_sampler`; `utils/data/streaming.py`;
`utils/config/__init__.py` `normalize_config`; `core/builders/base.py` `_configure_save_and_eval_strategy`."""

from __future__ import annotations

import math
from dataclasses import replace

from axmem_trace.config.derive.attention import decontaminates_packing, supports_packing
from axmem_trace.config.derive.objective import is_paired
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Batch, Model

DEFAULT_PAD_MULTIPLE = 64
MAX_TOKENS = 1 << 27
"""A larger batch is treated as a typing error."""


def derive_batch(draft: Draft, model: Model) -> Batch:
    """`Batch` from the keys: the longest batch that the run can have.

    Raises:
        ConfigError: sizes below 1 or too large.
    """
    micro, accumulation = _batch_sizes(draft)
    length = _positive(draft, "sequence_len")
    batch = _shape(draft, micro, length)
    if batch.rows * batch.row_tokens > MAX_TOKENS:
        raise draft.error(
            f"{batch.rows} rows of {batch.row_tokens} tokens are too large for a batch",
            "sequence_len",
            remedy="correct the sizes",
        )
    images, audio = _media(draft, model)
    return replace(
        batch,
        gradient_accumulation_steps=accumulation,
        neftune=bool(draft.get("neftune_noise_alpha")),
        image_size=_image_size(draft),
        images_per_row=images,
        audio_seconds_per_row=audio,
        processor_options=draft.sub("processor_kwargs"),
    )


def _shape(draft: Draft, micro: int, length: int) -> Batch:
    """Rows, their length and the mask, for each kind of batch."""
    if is_paired(draft) or draft.get("rl"):
        return _rows_of_preferences(draft, micro, length)
    if draft.get("sample_packing"):
        return _packed_rows(draft, micro, length)
    if _flattens(draft, micro):
        return _flattened_row(draft, micro, length)
    return _padded_rows(draft, micro, length)


def _rows_of_preferences(draft: Draft, micro: int, length: int) -> Batch:
    rows = _rows_of_trl(draft, micro)
    return Batch(rows=rows, row_tokens=row_tokens_of_trl(draft, length), padded=rows > 1)


def _packed_rows(draft: Draft, micro: int, length: int) -> Batch:
    rows, row_tokens = _packed_shape(draft, micro, length)
    mask = not decontaminates_packing(draft)
    samples = max(2, micro // rows)
    return Batch(
        rows=rows, row_tokens=row_tokens, packed=True, samples_per_row=samples, attention_mask=mask, padded=mask
    )


def _flattened_row(draft: Draft, micro: int, length: int) -> Batch:
    draft.reason("batch.rows", 1, "`batch_flattening` joins the batch into one row", key="batch_flattening")
    return Batch(rows=1, row_tokens=micro * length, packed=True, samples_per_row=micro, attention_mask=False)


def _padded_rows(draft: Draft, micro: int, length: int) -> Batch:
    row_tokens = padded_length(draft, length)
    _explain_rows(draft, micro, row_tokens, length)
    padded = micro > 1 or row_tokens > length or bool(draft.get("pad_to_sequence_len"))
    return Batch(rows=micro, row_tokens=row_tokens, padded=padded)


def _rows_of_trl(draft: Draft, micro: int) -> int:
    """Pairs are two rows each (trl `DataCollatorForPreference`, `DPODataCollatorWithPadding`)."""
    key = "rl" if draft.get("rl") else "reward_model"
    if not is_paired(draft):
        draft.reason_of_key("batch.rows", micro, "micro_batch_size")
        return micro
    text = "the chosen and the rejected text of each pair are two rows"
    draft.reason("batch.rows", 2 * micro, text, key=key, origin="derived")
    return 2 * micro


def row_tokens_of_trl(draft: Draft, length: int) -> int:
    """TRL's collators pad to the longest row, ORPO's and SimPO's to a configured multiple (axolotl
    `utils/collators/dpo.py`); a reward model's rows are always padded to the next multiple of `sequence_len`."""
    if not draft.get("rl"):
        return padded_length(draft, length)
    multiple = draft.get("pad_to_multiple_of") if draft.get("rl") in ("orpo", "simpo") else 0
    return _round_up(length, int(multiple)) if multiple else length


def _batch_sizes(draft: Draft) -> tuple[int, int]:
    micro = draft.get("micro_batch_size")
    if micro is None:
        raise draft.error(
            "axolotl needs micro_batch_size", "micro_batch_size", remedy="set it, or remove the empty line"
        )
    micro = _positive(draft, "micro_batch_size")
    accumulation = draft.get("gradient_accumulation_steps")
    if accumulation is None:
        accumulation = _accumulation_of_batch_size(draft, micro)
    elif draft.get("batch_size") and "gradient_accumulation_steps" not in draft.values:
        text = (
            "`batch_size` has no effect: gradient_accumulation_steps is 1 by default, and axolotl divides batch_size "
            "only where `gradient_accumulation_steps:` is left empty"
        )
        draft.note("warning", "batch_size", text)
    if accumulation < 1:
        key = "gradient_accumulation_steps"
        draft.fail(draft.error("gradient accumulation needs at least 1 step", key, accepted="1 or more"))
        accumulation = 1
    return micro, accumulation


def _accumulation_of_batch_size(draft: Draft, micro: int) -> int:
    """`normalize_config`: an empty `gradient_accumulation_steps:` is `batch_size` over the micro batch."""
    whole = draft.get("batch_size")
    if not whole:
        raise draft.error(
            "axolotl fails if this value is empty and batch_size is not set",
            "gradient_accumulation_steps",
            remedy="remove the line to get 1",
        )
    accumulation: int = max(1, whole // micro)
    text = f"`batch_size: {whole}` over micro_batch_size {micro}"
    draft.reason("batch.gradient_accumulation_steps", accumulation, text, key="batch_size", origin="derived")
    return accumulation


def _positive(draft: Draft, key: str) -> int:
    value = draft.get(key)
    if not isinstance(value, int) or value < 1:
        draft.fail(draft.error("the value must be at least 1", key, accepted="a whole number above 0"))
        return 1
    return value


def _pad_multiple(draft: Draft) -> int:
    multiple = draft.get("pad_to_multiple_of") or DEFAULT_PAD_MULTIPLE
    if multiple < 1:
        error = draft.error("the value must be at least 1", "pad_to_multiple_of", accepted="a whole number above 0")
        draft.fail(error)
        return DEFAULT_PAD_MULTIPLE
    return multiple


def _round_up(number: int, multiple: int) -> int:
    return multiple * math.ceil(number / multiple)


def padded_length(draft: Draft, length: int) -> int:
    """The longest row after the collator has padded it.

    It is a multiple of `pad_to_multiple_of` (by default 64), or of the sequence length under `pad_to_sequence_len`.
    """
    pad = pads_to_sequence_len(draft)
    if pad:
        whole = _round_up(max(1, draft.get("sequence_len") or 1), _pad_multiple(draft))
        return _round_up(length, whole)
    return length if pad is False else _round_up(length, _pad_multiple(draft))


def pads_to_sequence_len(draft: Draft) -> bool | None:
    """`hint_sample_packing_padding` and `hint_reward_model_pad` switch it on if the key is not set."""
    pad: bool | None = draft.get("pad_to_sequence_len")
    if pad is None and (draft.get("sample_packing") or draft.get("reward_model")):
        return True
    return pad


def _packed_shape(draft: Draft, micro: int, length: int) -> tuple[int, int]:
    rows, row_tokens, text, key = packed_sizes(draft, micro, length)
    draft.reason("batch.rows", rows, text, key=key, origin="derived")
    return rows, row_tokens


def packed_sizes(draft: Draft, micro: int, length: int) -> tuple[int, int, str, str]:
    """The number of rows, the tokens of each, the reason, and the key that decides.

    There is one long row if the kernel supports packing. There are `micro` rows for sdpa, for eager, and if no key is set.
    """
    streams = draft.get("pretraining_dataset") or draft.get("streaming")
    real = draft.get("multipack_real_batches")
    key = "multipack_real_batches" if real is not None else "sample_packing"
    if streams:
        text = "streamed and packed: one row of micro_batch_size * sequence_len tokens"
        return 1, _round_up(micro * length, length), text, "sample_packing"
    if real is None:
        real = not supports_packing(draft)
    if real:
        kernel = draft.get("attn_implementation") or "default"
        text = f"`{key}`" if key != "sample_packing" else f"packed rows are not joined under {kernel} attention"
        return micro, padded_length(draft, length), text, key
    text = "packing joins micro_batch_size * sequence_len tokens into one row"
    if pads_to_sequence_len(draft) is False:
        return 1, micro * length, text, key
    return 1, _round_up(micro * length, _round_up(length, _pad_multiple(draft))), text, key


def _flattens(draft: Draft, micro: int) -> bool:
    """`check_batch_flattening_fa`: `auto` means on with a packing kernel and several rows."""
    asked = draft.get("batch_flattening")
    if asked is True:
        return not draft.get("processor_type")
    if asked == "auto":
        return (
            supports_packing(draft)
            and not draft.get("sample_packing")
            and micro > 1
            and not draft.get("processor_type")
        )
    return False


def _explain_rows(draft: Draft, rows: int, row_tokens: int, length: int) -> None:
    if draft.get("pad_to_sequence_len") or draft.get("pretraining_dataset"):
        draft.reason("batch.row_tokens", row_tokens, "rows of the full sequence_len", key="sequence_len")
        return
    text = (
        f"rows are padded to the longest sample of a batch; assumed: {rows} x {row_tokens} tokens, the longest that "
        f"`sequence_len: {length}` allows. Shorter data needs less: set --assume row_tokens=N, or lengths=FILE"
    )
    draft.reason("batch.row_tokens", row_tokens, "the longest row that sequence_len allows", key="sequence_len")
    draft.note("assumed", "sequence_len", text)


def _media(draft: Draft, model: Model) -> tuple[int, float]:
    """One image per row if a processor is configured: the real number is only in the data."""
    if not draft.get("processor_type") or model.task != "image-text-to-text":
        return 0, 0.0
    if "vision_config" in model.base.config:
        text = "each row is assumed to have one image; change it with --assume images_per_row=N"
        draft.note("assumed", "processor_type", text)
        return 1, 0.0
    if "audio_config" in model.base.config:
        text = "each row is assumed to have 30 seconds of audio; change it with --assume audio_seconds_per_row=N"
        draft.note("assumed", "processor_type", text)
        return 0, 30.0
    return 0, 0.0


def _image_size(draft: Draft) -> tuple[int, ...]:
    """Height and width; one number is a square, two are width and height."""
    size = draft.get("image_size")
    if size is None:
        return ()
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise draft.error("an image has a width and a height", "image_size", accepted="512 or [512, 384]")
    return (sides[1], sides[0])
