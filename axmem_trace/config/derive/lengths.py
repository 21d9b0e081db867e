"""How the rows of batches differ in length. Source: axolotl 0.19 and 0.21 `core/builders/causal.py` `build` (0.21: line
390: `pad_to_multiple_of`), `build_collator`; `utils/collators/batching.py`; `utils/schemas/validation.py`
`hint_sample_packing_padding` (packed rows are padded to the full length unless the key is false)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from axmem_trace.config.derive.batch import DEFAULT_PAD_MULTIPLE, pads_to_sequence_len
from axmem_trace.config.derive.objective import is_paired
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.recipe import Batch, Recipe


def derive_lengths(draft: Draft, batch: Batch) -> RowLengths:
    """`RowLengths` from the keys. No key says how long the samples are."""
    if draft.get("rl"):
        multiple = draft.get("pad_to_multiple_of") if draft.get("rl") in ("orpo", "simpo") else 0
        return RowLengths(collation="longest", multiple=int(multiple or 1))
    pads = pads_to_sequence_len(draft)
    if pads or draft.get("pretraining_dataset") or draft.get("streaming"):
        return RowLengths()
    if batch.packed:
        return RowLengths(collation="packed" if draft.get("sample_packing") else "joined")
    multiple = 1 if pads is False else draft.get("pad_to_multiple_of") or DEFAULT_PAD_MULTIPLE
    if draft.get("processor_type") and not is_paired(draft):
        multiple = 1  # axolotl passes neither padding key to its multimodal collator
    return RowLengths(collation="longest", multiple=int(multiple))


def assume_lengths(recipe: Recipe, value: Any) -> Recipe:
    """`--assume lengths=...`.

    Raises:
        ValueError: it is neither `full`, `vary`, a range, a list of lengths nor a file of them; or no length is possible.
    """
    from axmem_trace.files import expanded, is_file

    lengths = recipe.lengths
    if value == "full":
        return replace(recipe, lengths=RowLengths())
    if not lengths.vary:
        raise ValueError("all rows of this run have the full length")
    if value == "vary":
        return replace(recipe, lengths=replace(lengths, asked=True))
    if isinstance(value, list):
        return _with_samples(recipe, value, "a list of lengths")
    low, dash, high = value.partition("-")
    if dash and low.strip().isdigit() and high.strip().isdigit():
        shortest, longest = int(low), int(high)
        most = recipe.batch.row_tokens
        if not 1 <= shortest <= longest <= most:
            raise ValueError(f"a range has two numbers from 1 to {most}, the smaller one first")
        source = f"{shortest} to {longest} tokens a sample"
        return replace(recipe, lengths=replace(lengths, shortest=shortest, longest=longest, asked=True, source=source))
    path = expanded(value)
    if not is_file(path):
        raise ValueError(f"no such file: {value}")
    return _with_samples(recipe, read_lengths(path.read_text(encoding="utf-8")), f"the lengths in {path.name}")


def read_lengths(text: str) -> list[int]:
    """The whole numbers in a JSON list, or in a text with one number a line.

    Raises:
        ValueError: the text contains anything else.

    >>> read_lengths("[512, 80]"), read_lengths("512\\n80\\n")
    ([512, 80], [512, 80])
    """
    words = text.replace("[", " ").replace("]", " ").replace(",", " ").split()
    bad = next((word for word in words if not word.isdigit()), None)
    if bad is not None:
        raise ValueError(f"{bad[:40]!r} is no number of tokens")
    return [int(word) for word in words]


def _with_samples(recipe: Recipe, samples: list[int], source: str) -> Recipe:
    """axolotl drops samples that are longer than `sequence_len` (`excess_length_strategy: drop`, its default)."""
    most = recipe.batch.row_tokens
    if recipe.lengths.collation in ("joined", "packed"):
        most //= max(1, recipe.batch.samples_per_row)
    kept = tuple(each for each in samples if 1 <= each <= most)
    if not kept:
        raise ValueError(f"no length is in the range from 1 to {most}")
    dropped = len(samples) - len(kept)
    text = f"{source}, {len(kept)} samples" + (f", {dropped} longer ones dropped" if dropped else "")
    return replace(recipe, lengths=replace(recipe.lengths, samples=kept, asked=True, source=text))
