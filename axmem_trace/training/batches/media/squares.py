"""Families whose processor resizes every image to one square of the tower's size."""

from __future__ import annotations

from axmem_trace.training.batches.media.types import SEPARATOR, Media, Question, image_token, pixels, side_of


def llava(question: Question) -> Media:
    """LLaVA, and similar models with a CLIP or SigLIP tower: one token for each patch.

    Source: transformers `processing_llava.py` `replace_image_token`: the number of patches, plus CLIP's class token.
    The `default` selection drops that token.
    """
    config, vision = question.config, question.vision
    side, patch = side_of(vision.image_size), int(vision.patch_size)
    tokens = (side // patch) ** 2 + (1 if "clip" in vision.model_type and "siglip" not in vision.model_type else 0)
    if getattr(config, "vision_feature_select_strategy", "default") == "default":
        tokens -= 1
    placeholder = image_token(config)
    return Media(
        span=(placeholder,) * tokens,
        inputs={"pixel_values": pixels(question.total, 3, side, side)},
        placeholder=placeholder,
        rule=f"({side} / {patch})^2 patches (processing_llava.py)",
        height=side,
        width=side,
    )


def gemma3(question: Question) -> Media:
    """Gemma 3 and 3n: a fixed number of pooled tokens between markers and blank lines.

    Pan-and-scan crops are off, as in the published processors. Source: transformers `processing_gemma3.py`,
    `processing_gemma3n.py`: `full_image_sequence`.
    """
    config, vision = question.config, question.vision
    tokens = int(getattr(config, "mm_tokens_per_image", 0) or getattr(config, "vision_soft_tokens_per_image", 256))
    side = side_of(getattr(vision, "image_size", None) or 768)
    placeholder = image_token(config)
    return Media(
        span=(SEPARATOR, SEPARATOR, *(placeholder,) * tokens, SEPARATOR, SEPARATOR),
        inputs={"pixel_values": pixels(question.total, 3, side, side)},
        placeholder=placeholder,
        token_types="token_type_ids",
        rule=f"{tokens} pooled tokens for an image of any size (config.json)",
        height=side,
        width=side,
    )


def paligemma(question: Question) -> Media:
    """Source: transformers `processing_paligemma.py`: `image_seq_length` tokens before the prompt."""
    vision = question.vision
    side, patch = side_of(vision.image_size), int(vision.patch_size)
    tokens = (side // patch) ** 2
    placeholder = image_token(question.config)
    return Media(
        span=(placeholder,) * tokens,
        inputs={"pixel_values": pixels(question.total, 3, side, side)},
        placeholder=placeholder,
        token_types="token_type_ids",
        rule=f"({side} / {patch})^2 patches (processing_paligemma.py)",
        height=side,
        width=side,
    )
