"""Finds the configuration of `base_model`: in a local directory, the Hugging Face cache, the bundled catalogue, the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from axmem_trace.catalogue.sources import Look, hub_is_offline, is_hub_id, look_in_cache, look_in_directory, look_on_hub
from axmem_trace.catalogue.table import find_in_catalogue, nearest_ids
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import BaseModel

HubUse = Literal["never", "fallback", "first"]
MAX_NAME_LENGTH = 4096
"""Longer than any path that Linux opens (PATH_MAX)."""


def find_base_model(
    name: str, *, hub: HubUse = "fallback", revision: str = "", base_directory: Path | None = None
) -> BaseModel:
    """The configuration of a base model, and where it was found.

    The order of the search: a local directory with `config.json` (or the path of that file), the Hugging Face cache,
    the bundled catalogue, the Hub. Weights are never downloaded.

    Args:
        name: `base_model` of the configuration: a Hub id or a path.
        hub: `never` uses no network; `fallback` searches the Hub last; `first` searches it before the cache and the
            catalogue, which may be out of date. `HF_HUB_OFFLINE` means `never`.
        revision: branch, tag or commit of the Hub repository. The catalogue only has `main`; `BaseModel.source` says so.
        base_directory: the directory of the configuration file, from which a relative path may also start.

    Raises:
        ConfigError: it is not found (the error has each source with its result, and the nearest ids), or the file is broken.
    """
    _refuse_name(name)
    looks: list[Look] = []
    for look_there in _places(name, hub, revision, base_directory):
        look = look_there()
        if look.config is not None:
            return _base_model(name, look)
        looks.append(look)
    raise _not_found(name, looks)


def _places(name: str, hub: HubUse, revision: str, base_directory: Path | None) -> list[Callable[[], Look]]:
    places: list[Callable[[], Look]] = [lambda: look_in_directory(name, base_directory)]
    if not is_hub_id(name):
        return places
    if hub_is_offline():
        hub = "never"
    if hub == "first":
        places.append(lambda: look_on_hub(name, revision))
    places += [lambda: look_in_cache(name, revision), lambda: _look_in_catalogue(name, revision)]
    if hub == "fallback":
        places.append(lambda: look_on_hub(name, revision))
    return places


def _look_in_catalogue(name: str, revision: str) -> Look:
    found = find_in_catalogue(name)
    if found is None:
        return Look("catalogue", "not among the bundled models (`axmem_trace models` lists them)")
    source = f"catalogue {found.id} ({found.description})"
    if revision and revision != "main":
        source += f", as of main, not revision {revision!r}"
    return Look("catalogue", found.id, found.config, source=source, caution=found.caution)


def _base_model(name: str, look: Look) -> BaseModel:
    assert look.config is not None
    model_type = str(look.config["model_type"])
    return BaseModel(
        name=look.outcome if look.place == "catalogue" else name,
        config=look.config,
        source=look.source,
        caution=look.caution,
        directory=look.directory,
        model_type=model_type,
        text_model_type=_text_model_type(look.config) or model_type,
    )


def _text_model_type(config: dict[str, Any]) -> str:
    """`model_type` of the language model in a composite configuration.

    The field names are those that transformers' `PreTrainedConfig.get_text_config` and its composite models use.
    """
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = config.get(key)
        if isinstance(inner, dict):
            return _text_model_type(inner) or str(inner.get("model_type") or "")
    return ""


def _refuse_name(name: object) -> None:
    problem = ""
    if not isinstance(name, str) or not name.strip():
        problem = "names no model"
    elif len(name) > MAX_NAME_LENGTH:
        problem = f"is a name of {len(name)} characters, longer than any path"
    elif not name.isprintable():
        problem = "has control characters in it"
    if problem:
        raise ConfigError(
            problem=problem,
            key="base_model",
            value=name if not isinstance(name, str) else name[:80],
            accepted="a Hugging Face id such as meta-llama/Llama-3.1-8B, or a directory with config.json",
        )


def _not_found(name: str, looks: list[Look]) -> ConfigError:
    details = [f"looked in {look.place}: {look.outcome}" for look in looks]
    could_be_id = is_hub_id(name)
    if not could_be_id:
        details.append(
            "not a Hugging Face id (organisation/name): the cache, the catalogue and the Hub were not searched"
        )
    elif not any(look.place == "hub" for look in looks):
        details.append("hub: not searched (--offline or HF_HUB_OFFLINE)")
    nearest = nearest_ids(name)
    if nearest:
        details.append("nearest known ids: " + ", ".join(nearest))
    return ConfigError(
        problem="no configuration of this base model was found",
        key="base_model",
        value=name,
        details=tuple(details),
        remedy=_remedy(could_be_id, looks),
    )


def _remedy(could_be_id: bool, looks: list[Look]) -> str:
    """The advice for an unknown id. A fine-tuned model needs as much memory as the model that it was made from."""
    made_from = (
        "a fine-tuned model needs as much memory as its own base model, so name that one with `--set base_model=ID` "
        "(`axmem_trace models` lists the ids that need no network)"
    )
    directory = "or give a local directory with the model's config.json (weights are not needed)"
    if not could_be_id:
        check = "check the path"
    elif any(look.place == "hub" for look in looks):
        check = "check the spelling; log in for gated or private models (`hf auth login` or HF_TOKEN)"
    else:
        check = "check the spelling; remove --offline to search the Hub too"
    return f"{check}; {made_from}; {directory}"
