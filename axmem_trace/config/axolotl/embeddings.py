"""axolotl's names for the input embedding and the output head of a model."""

from __future__ import annotations

from axmem_trace.config.axolotl.releases import Release

_NAMES = {
    "falcon": ("word_embeddings", "lm_head"),
    "nemotron_h": ("embeddings", "lm_head"),
    "bailing_hybrid": ("word_embeddings", "lm_head"),
}
LLAMA_NAMES = ("embed_tokens", "lm_head")


def embedding_names(model_type: str, release: Release) -> tuple[str, str]:
    """Parts of the names of embedding and head: axolotl `loaders/utils.py` `get_linear_embedding_layers`.

    >>> from axmem_trace.config.axolotl import NEWEST
    >>> embedding_names("falcon", NEWEST)
    ('word_embeddings', 'lm_head')
    """
    if model_type == "gpt_neox":
        return "embed_in", release.behaviour.neox_head
    return _NAMES.get(model_type, LLAMA_NAMES)
