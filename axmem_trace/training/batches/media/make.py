"""Makes the media of a batch: chooses the family's rule and the image size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.media import any_resolution, audio, free_sizes, patch_grids, squares, tiles
from axmem_trace.training.batches.media.types import Media, Question

Rule = Callable[[Question], Media]

IMAGE_RULES: dict[str, Rule] = {
    "gemma3": squares.gemma3, "gemma3n": squares.gemma3, "gemma4": free_sizes.gemma4,
    "gemma4_unified": free_sizes.gemma4_unified, "glm46v": patch_grids.glm_v, "glm4v": patch_grids.glm_v,
    "glm4v_moe": patch_grids.glm_v, "idefics3": tiles.idefics3, "internvl": tiles.internvl,
    "lfm2_vl": free_sizes.lfm2_vl, "llama4": tiles.llama4, "llava": squares.llava,
    "llava_next": any_resolution.llava_next, "llava_onevision": any_resolution.llava_onevision,
    "mistral3": free_sizes.pixtral, "mllama": tiles.mllama, "paligemma": squares.paligemma,
    "pixtral": free_sizes.pixtral, "qwen2_5_vl": patch_grids.qwen_vl, "qwen2_vl": patch_grids.qwen_vl,
    "qwen3_5": patch_grids.qwen_vl, "qwen3_5_moe": patch_grids.qwen_vl, "qwen3_vl": patch_grids.qwen_vl,
    "qwen3_vl_moe": patch_grids.qwen_vl, "smolvlm": tiles.idefics3, "vipllava": squares.llava,
}  # fmt: skip
AUDIO_RULES: dict[str, Rule] = {"voxtral": audio.voxtral}
"""By `model_type`."""
_STEP = 28
"""The factor by which the default image shrinks in each try, until it fits into the row."""


def reads_media(recipe: Recipe) -> bool:
    """True if the run's rows contain images or audio."""
    return bool(recipe.batch.images_per_row or recipe.batch.audio_seconds_per_row)


def make_media(recipe: Recipe, config: Any, *, rows: int, max_tokens: int, notes: Notes) -> tuple[list[Media], int]:
    """The media in each row, and their number; empty for a family without a rule.

    Args:
        config: the built model's configuration.
        max_tokens: the tokens in a row for all images together.

    Returns:
        The media, each once, and the number of images in a row.
    """
    found: list[Media] = []
    batch, model_type = recipe.batch, _family(config)
    if batch.images_per_row:
        rule = IMAGE_RULES.get(model_type)
        if rule is None:
            notes.append(_no_rule(model_type, "images", "images_per_row"))
        else:
            found.append(_fitting(rule, _question(recipe, config, rows), max_tokens))
            notes.append(_note_images(recipe, found[-1]))
    if batch.audio_seconds_per_row:
        rule = AUDIO_RULES.get(model_type)
        if rule is None:
            notes.append(_no_rule(model_type, "audio", "audio_seconds_per_row"))
        else:
            question = Question(config=config, rows=rows, per_row=1, seconds=batch.audio_seconds_per_row)
            found.append(rule(question))
            notes.append(_note_audio(recipe, found[-1]))
    return found, batch.images_per_row


def _family(config: Any) -> str:
    """The name of the family. A LLaVA configuration may contain Pixtral's tower, which has another processor."""
    model_type = str(config.model_type)
    if model_type == "llava" and getattr(config.vision_config, "model_type", "") == "pixtral":
        return "pixtral"
    return model_type.replace("-", "_")


def _question(recipe: Recipe, config: Any, rows: int) -> Question:
    batch = recipe.batch
    height, width = batch.image_size if batch.image_size else (0, 0)
    return Question(
        config=config,
        rows=rows,
        per_row=batch.images_per_row,
        height=height,
        width=width,
        options=recipe.batch.processor_options,
    )


def _fitting(rule: Rule, question: Question, max_tokens: int) -> Media:
    """The media for an image. If no size is given, it is the largest square that the processor does not shrink and that
    leaves space for one text token."""
    media = largest = rule(question)
    if question.height:
        return media
    side = largest.height
    while len(media.span) * question.per_row + question.per_row >= max_tokens and side > _STEP:
        side -= _STEP
        media = rule(replace(question, height=side, width=side))
    return media if len(media.span) * question.per_row + question.per_row < max_tokens else largest


def _note_images(recipe: Recipe, media: Media) -> Note:
    count = recipe.batch.images_per_row
    if recipe.batch.image_size:
        size = "`image_size: {1}x{0}` (width x height)".format(*recipe.batch.image_size)
    else:
        size = "no `image_size` given: the largest square that the processor does not shrink and that fits into a row"
    text = (
        f"{media.num_tokens * count} image tokens in each row: {count} image{'s' * (count != 1)} of {media.num_tokens} "
        f"tokens, {media.rule}; {size}. Set `image_size`, `processor_kwargs` or --assume images_per_row=N"
    )
    return Note(kind="assumed", key="image_size", text=text)


def _note_audio(recipe: Recipe, media: Media) -> Note:
    text = (
        f"{media.num_tokens} audio tokens in each row, for {recipe.batch.audio_seconds_per_row:g} seconds: {media.rule}. "
        "Set --assume audio_seconds_per_row=N"
    )
    return Note(kind="assumed", key="audio_seconds_per_row", text=text)


def _no_rule(model_type: str, what: str, key: str) -> Note:
    text = (
        f"no rule for the {what} of {model_type!r}: the rows are counted as text only, so the tower's activations are "
        f"not in the figures (its weights are); --assume {key}=0 says that this is meant"
    )
    return Note(kind="not_modelled", key=key, text=text, direction="more", touches="activations")
