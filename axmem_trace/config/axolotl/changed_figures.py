"""Figures that another release of axolotl changed by more than a tenth, for keys that many configurations have.

Each change names the release that made it. The report gets a note if the run has the keys and the change is large enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from axmem_trace.config.axolotl.releases import RELEASES, Release
from axmem_trace.model_facts import ModelFacts
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Recipe

SHARE = 0.1
"""Of the peak: a change below it is not reported."""


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between two releases: one of them holds `bytes` more memory (0 if the run does not have the keys)."""

    since: str
    key: str
    bytes: Callable[[Recipe, int], int]
    """Called with the recipe and the number of elements of the output head (0 if the head is frozen)."""
    newer: str
    """What the releases from `since` on do."""
    older: str
    """What the releases before it do."""


def _kept_by_8bit_layers(recipe: Recipe, head: int) -> int:
    """bitsandbytes 0.50.2 `MatMul8bitLt.forward` keeps its input as an attribute of `ctx`, where no hook of checkpointing
    sees it: each layer keeps the inputs of q, k and v, of o, of gate and up, and of down, in 2 bytes."""
    checkpointing = recipe.checkpointing
    if recipe.quantisation.method != "bnb_8bit" or not checkpointing.enabled or not _is_default(recipe):
        return 0
    config = recipe.model.base.config
    inside = config.get("text_config")
    text: Mapping[str, Any] = inside if isinstance(inside, Mapping) else config
    hidden, inner, layers = (
        int(text.get(name) or 0) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    heads = int(text.get("num_attention_heads") or 0) * int(text.get("head_dim") or 0) or hidden
    return (2 * hidden + heads + inner) * 2 * recipe.batch.rows * recipe.batch.row_tokens * layers


def _is_default(recipe: Recipe) -> bool:
    """The configuration does not name the variant of checkpointing."""
    reason = recipe.reasons.get("checkpointing.use_reentrant")
    return reason is not None and reason.text.startswith("the default of axolotl")


def _through_two_products(recipe: Recipe, head: int) -> int:
    """The gradient of a trained head in its own dtype and in fp32, in addition to the sum (liger-kernel 0.8.1)."""
    half = recipe.precision.load_dtype in ("bfloat16", "float16")
    return 6 * head if half and recipe.loss.path == "liger_fused_linear" else 0


CHANGES = (
    Change(
        "0.21.0",
        "gradient_checkpointing",
        _kept_by_8bit_layers,
        "checkpoints in the non-reentrant variant, in which 8-bit layers keep their inputs of every layer "
        "(`gradient_checkpointing_kwargs: {use_reentrant: true}` gives the older figure)",
        "checkpoints in the reentrant variant, in which 8-bit layers keep nothing",
    ),
    Change(
        "0.21.0",
        "liger_fused_linear_cross_entropy",
        _through_two_products,
        "installs liger-kernel 0.8.4, which adds the gradient of the head directly to its sum",
        "installs liger-kernel 0.8.1, which computes the gradient of the head in two dtypes, chunk by chunk",
    ),
)


def note_changed_figures(recipe: Recipe, facts: ModelFacts, peak_bytes: int) -> tuple[Note, ...]:
    """The changes that alter this run's figures by more than a tenth of `peak_bytes`, the largest allocated amount."""
    release = next((each for each in RELEASES if each.version == recipe.axolotl.version), None)
    if release is None:
        return ()
    head = facts.trained_head_elements(recipe.model.embedding_names)
    worth = [(change, change.bytes(recipe, head)) for change in CHANGES]
    return tuple(
        Note(kind="warning", key=change.key, text=_text(change, release), bytes=nbytes)
        for change, nbytes in worth
        if nbytes > SHARE * peak_bytes
    )


def _text(change: Change, release: Release) -> str:
    before = [each.version for each in RELEASES if each.is_before(change.since)][-1]
    if release.is_before(change.since):
        when, other, own, option = f"from axolotl {change.since} on", change.newer, change.older, change.since
    else:
        when, other, own, option = f"until axolotl {before}", change.older, change.newer, before
    return (
        f"{when} the figure differs by more than a tenth: it {other}; axolotl {release.version} {own}. "
        f"`--axolotl {option}` shows that figure"
    )
