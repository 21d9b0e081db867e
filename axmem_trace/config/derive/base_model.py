"""The base model's configuration, with the changes that the YAML makes to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from axmem_trace.catalogue.lookup import HubUse
from axmem_trace.config.document.draft import Draft
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.lines import place_error
from axmem_trace.recipe.recipe import BaseModel


def derive_base_model(draft: Draft, *, hub: HubUse) -> BaseModel:
    """Looks up `base_model` (or `base_model_config`, which axolotl reads the configuration from) and merges
    `overrides_of_model_config` into it.

    Source: axolotl `loaders/utils.py` `load_model_config`: each override is one `setattr` on the configuration.

    Raises:
        ConfigError: no base model is named, or it is not found.
    """
    key = "base_model_config" if draft.get("base_model_config") else "base_model"
    name = draft.get(key)
    if not name or not draft.get("base_model"):
        raise draft.error(
            "the configuration names no base model",
            "base_model",
            remedy="add a line such as `base_model: meta-llama/Llama-3.1-8B`",
        )
    from axmem_trace.catalogue import find_base_model

    try:
        base = find_base_model(
            str(name), hub=hub, revision=draft.get("revision_of_model") or "", base_directory=draft.directory
        )
    except ConfigError as error:
        error.key = key
        place_error(error, draft.name, draft.written)
        raise
    draft.reason("model.base", base.name, f"config.json from {base.source}", key=key)
    return _with_overrides(draft, base)


def _with_overrides(draft: Draft, base: BaseModel) -> BaseModel:
    overrides = draft.sub("overrides_of_model_config")
    if not overrides:
        return base
    config: dict[str, Any] = {**base.config, **overrides}
    draft.reason(
        "model.base.config", ", ".join(overrides), "`overrides_of_model_config`", key="overrides_of_model_config"
    )
    model_type = str(config.get("model_type") or base.model_type)
    text_type = base.text_model_type
    for name, value in overrides.items():
        if name == "text_config" and isinstance(value, Mapping):
            text_type = str(value.get("model_type") or text_type)
    return replace(base, config=config, model_type=model_type, text_model_type=text_type)
