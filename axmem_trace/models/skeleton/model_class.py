"""Finds the model class that axolotl would load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axmem_trace.errors import ConfigError
from axmem_trace.models.skeleton.remote_code import own_code, place_of, run_own_class
from axmem_trace.notes import Note, Notes, RefusalNote
from axmem_trace.recipe.recipe import Recipe

AUTO_CLASS_OF_TASK = {
    "causal-lm": "AutoModelForCausalLM",
    "image-text-to-text": "AutoModelForImageTextToText",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""The Auto class that loads a model, by training task."""
_NAMED_BY_AXOLOTL = ("voxtral",)
"""Types for which the Auto class has no model class, but axolotl's own mapping has one (`loaders/constants.py`)."""
_MAMBA_SSM_CLASS = "MambaLMHeadModel"


def find_model_class(recipe: Recipe, config: Any, notes: Notes) -> tuple[Any, Any]:
    """The model class, and its configuration: for a text class of a composite type, the text part.

    Source: axolotl `loaders/model.py` `_set_auto_model_loader`, `_build_model` (a named `type_of_model` is taken from
    transformers unless remote code or GPTQ is requested); transformers `auto_factory.py` `from_config`.

    Raises:
        ConfigError: the class does not exist, this architecture has none, or its code can't be imported here.
    """
    with import_faults_named(recipe.model.base.name):
        return _find_model_class(recipe, config, notes)


@contextmanager
def import_faults_named(name: str) -> Iterator[None]:
    """Turns failed imports of transformers' code for a model into a `ConfigError`.

    Raises:
        ConfigError: the import fails, because a package is missing or does not work here. The original error is
            `transformers.utils.import_utils`' ModuleNotFoundError, whose cause is the reason.
    """
    try:
        yield
    except ImportError as error:
        cause = error.__cause__ or error
        raise ConfigError(
            problem=f"transformers' code for {name} can't be imported in this environment",
            key="base_model",
            details=(str(error), f"because of {type(cause).__name__}: {cause}"),
            remedy="repair or remove the package named above (torchvision, timm and others must match the installed "
            "torch); `pip check` lists packages that do not match",
        ) from error


def _find_model_class(recipe: Recipe, config: Any, notes: Notes) -> tuple[Any, Any]:
    named = recipe.model.type_of_model
    if named == _MAMBA_SSM_CLASS:
        text = "built as transformers' own Mamba class; axolotl would load mamba-ssm's MambaLMHeadModel"
        notes.append(Note(kind="assumed", key="type_of_model", text=text))
        named = ""
    auto_class = _named_class(AUTO_CLASS_OF_TASK[recipe.model.task])
    if named and named != AUTO_CLASS_OF_TASK["causal-lm"]:
        try:
            found = _named_class(named)
        except ConfigError as error:
            notes.append(_refuse_name(error, auto_class))
            found = auto_class
        if not hasattr(found, "_model_mapping"):
            return found, _config_for(found, config)
        auto_class = found
    return _class_of_auto(recipe, auto_class, config, notes)


def _refuse_name(error: ConfigError, auto_class: Any) -> RefusalNote:
    """The refusal: axolotl reads the name from transformers (`getattr(transformers, self.model_type)`) and fails."""
    text = f"the run fails: {error.problem}, {error.details[0]} (the figures are with {auto_class.__name__})"
    return RefusalNote(key=error.key, text=text, remedy=error.remedy)


def _named_class(name: str) -> Any:
    import transformers

    try:
        found = getattr(transformers, name, None)
        if found is not None:
            bool(getattr(found, "_is_dummy", False))
    except Exception as error:
        raise _unusable(name, str(error)) from error
    if not isinstance(found, type):
        raise _unusable(name, f"transformers {transformers.__version__} has no class of this name")
    return found


def _unusable(name: str, why: str) -> ConfigError:
    return ConfigError(
        problem=f"the model class {name} can't be used",
        key="type_of_model",
        value=name,
        accepted="a transformers class, such as AutoModelForCausalLM, LlamaForCausalLM, AutoModelForImageTextToText",
        details=(why,),
        remedy="remove the key, so that the class follows from the base model, or correct the name",
    )


def _class_of_auto(recipe: Recipe, auto_class: Any, config: Any, notes: Notes) -> tuple[Any, Any]:
    mapping = auto_class._model_mapping
    if type(config) in mapping:
        found = mapping[type(config)]
        if isinstance(found, (list, tuple)):
            found = _preferred(found, config)
        return found, _config_for(found, config)
    remote = own_code(recipe.model)
    if auto_class.__name__ in remote and recipe.model.trust_remote_code:
        return _remote_class(recipe, remote[auto_class.__name__], notes), config
    fallback = _class_of_architectures(config)
    if fallback is None or recipe.model.task.endswith("classification"):
        raise _no_class(recipe, auto_class, config)
    if config.model_type in _NAMED_BY_AXOLOTL:
        return fallback, _config_for(fallback, config)
    text = (
        f"the run fails: {auto_class.__name__} has no class for {config.model_type!r} (the figures are with "
        f"{fallback.__name__}, which the base model's config.json names)"
    )
    notes.append(RefusalNote(key="processor_type", text=text, remedy="add `processor_type: AutoProcessor`"))
    return fallback, _config_for(fallback, config)


def _preferred(classes: Any, config: Any) -> Any:
    """The class in `architectures`, if a configuration type has several classes; else the first.

    Source: transformers `auto_factory.py` `_get_model_class`.
    """
    by_name = {found.__name__: found for found in classes}
    for name in getattr(config, "architectures", None) or []:
        if name in by_name:
            return by_name[name]
    return classes[0]


def _config_for(model_class: Any, config: Any) -> Any:
    """The text configuration, if the class is a text model of a composite type (`from_config` of the Auto classes)."""
    text_config_class = (getattr(config, "sub_configs", None) or {}).get("text_config")
    if text_config_class is None or getattr(model_class, "config_class", None) != text_config_class:
        return config
    text_config = config.get_text_config()
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        text_config.quantization_config = quantization
    text_config.name_or_path = config.name_or_path
    return text_config


def _class_of_architectures(config: Any) -> Any:
    import transformers

    for name in getattr(config, "architectures", None) or []:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and hasattr(found, "config_class"):
            return found
    return None


def _remote_class(recipe: Recipe, reference: str, notes: Notes) -> Any:
    place = place_of(recipe.model)
    notes.append(Note(kind="assumed", key="trust_remote_code", text=f"ran the model code {reference} of {place}"))
    return run_own_class(reference, place)


def _no_class(recipe: Recipe, auto_class: Any, config: Any) -> ConfigError:
    return ConfigError(
        problem=f"transformers has no {auto_class.__name__} for {config.model_type!r} ({recipe.model.base.name})",
        key="base_model",
        remedy="name the model class with `type_of_model`, or choose a base model of another architecture",
    )
