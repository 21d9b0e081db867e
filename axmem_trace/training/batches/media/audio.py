"""Audio: log-mel frames in windows of a fixed length, and their placeholder tokens in the text."""

from __future__ import annotations

import math

from axmem_trace.training.batches.media.types import SEPARATOR, Media, Question, pixels

WINDOW_SECONDS = 30
"""Whisper's window: transformers `feature_extraction_whisper.py`, `chunk_length`; Voxtral pads audio to whole
windows."""


def voxtral(question: Question) -> Media:
    """Source: transformers `processing_voxtral.py` `_retrieve_input_features`; `modeling_voxtral.py`
    `get_audio_features`: two frames a position, then `intermediate_size / hidden_size` positions a token."""
    audio = question.config.audio_config
    windows = max(1, math.ceil(question.seconds / WINDOW_SECONDS))
    positions = int(audio.max_source_positions)
    tokens = positions * int(audio.hidden_size) // int(audio.intermediate_size)
    placeholder = int(question.config.audio_token_id)
    return Media(
        span=(SEPARATOR, *(placeholder,) * (windows * tokens)),
        inputs={"input_features": pixels(question.total * windows, int(audio.num_mel_bins), 2 * positions)},
        placeholder=placeholder,
        rule=f"{windows} windows of {WINDOW_SECONDS} s, {tokens} tokens each (modeling_voxtral.py)",
    )
