"""From a recipe to a transformers configuration object, without the network."""

from __future__ import annotations

import copy
from typing import Any

from axmem_trace.errors import ConfigError
from axmem_trace.models.skeleton.model_class import AUTO_CLASS_OF_TASK, import_faults_named
from axmem_trace.models.skeleton.remote_code import own_code, place_of, refuse_remote_code, run_own_class
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Model, Recipe

_NOT_FOR_CONFIG_CLASSES = ("transformers_version", "_commit_hash")


def build_model_config(recipe: Recipe, notes: Notes) -> Any:
    """The transformers configuration that `AutoConfig.from_pretrained` would return, with axolotl's changes.

    Source: axolotl `loaders/utils.py` `load_model_config`, `check_model_config` (use_cache off, num_labels). The recipe
    already includes the overrides of `overrides_of_model_config`.

    Raises:
        ConfigError: a `model_type` that the installed transformers doesn't have, or fields that its class refuses.
    """
    model = recipe.model
    values = {key: value for key, value in _thaw(model.base.config).items() if key not in _NOT_FOR_CONFIG_CLASSES}
    if model.num_labels:
        values["num_labels"] = model.num_labels
    config_class = _config_class(model, notes)
    try:
        config = config_class.from_dict(values)
    except Exception as error:
        raise ConfigError(
            problem=f"transformers' {config_class.__name__} refuses the configuration of {model.base.name}",
            key="base_model",
            details=(f"{type(error).__name__}: {error}",),
            remedy="check the base model's config.json and `overrides_of_model_config` against transformers' "
            f"{config_class.__name__}",
        ) from error
    _switch_cache(config, on=recipe.older.use_cache)
    if model.task == "sequence-classification":
        _set_padding(config)
    config.name_or_path = model.base.name
    return config


def _config_class(model: Model, notes: Notes) -> Any:
    from transformers import CONFIG_MAPPING

    model_type = model.base.model_type or str(model.base.config.get("model_type", ""))
    has_remote_code = bool(own_code(model))
    if model_type in CONFIG_MAPPING:
        if has_remote_code and model.trust_remote_code:
            text = f"transformers has {model_type!r} built in: its class is used, the repository's own code is not run"
            notes.append(Note(kind="assumed", key="trust_remote_code", text=text))
        with import_faults_named(model.base.name):
            return CONFIG_MAPPING[model_type]
    if has_remote_code:
        refuse_remote_code(model, ("AutoConfig", AUTO_CLASS_OF_TASK[model.task]))
        return run_own_class(own_code(model)["AutoConfig"], place_of(model))
    import transformers

    raise ConfigError(
        problem=f"transformers {transformers.__version__} has no model type {model_type!r} (of {model.base.name})",
        key="base_model",
        remedy="install a newer transformers (pip install -U transformers), or name a base model of a known type",
    )


def _switch_cache(config: Any, *, on: bool) -> None:
    for part in (config, text_part(config)):
        if hasattr(part, "use_cache"):
            part.use_cache = on


def _set_padding(config: Any) -> None:
    """Set a padding token, which classifiers need. The trainers set the tokenizer's; here it is the end-of-text token if the
    configuration has none.

    The id itself does not change memory. Source: trl `reward_trainer.py` `RewardTrainer.__init__`; transformers `trainer.py`
    `align_special_tokens`.
    """
    part = text_part(config)
    if getattr(part, "pad_token_id", None) is None:
        end = getattr(part, "eos_token_id", None)
        part.pad_token_id = (end[0] if isinstance(end, list) and end else end) or 0


def text_part(config: Any) -> Any:
    """The language model's configuration; if there are several (MusicGen's encoder and decoder), the decoder's."""
    try:
        return config.get_text_config()
    except ValueError:
        return config.get_text_config(decoder=True)


def _thaw(value: Any) -> Any:
    """A copy with plain dictionaries and lists: the recipe's are read-only, but configuration classes change their
    arguments."""
    if hasattr(value, "items"):
        return {key: _thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_thaw(item) for item in value]
    return copy.copy(value)
