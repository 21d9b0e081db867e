"""A base model's own Python code. A message names it before it runs, and it runs only if the user allows it twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axmem_trace.errors import ConfigError
from axmem_trace.quiet import user_stream
from axmem_trace.recipe.recipe import Model


def own_code(model: Model) -> dict[str, str]:
    """`auto_map` of the base model's `config.json`: Auto class -> the code that it would run, as `file.Class`."""
    found: Any = model.base.config.get("auto_map") or {}
    return {str(role): str(reference) for role, reference in found.items()} if isinstance(found, Mapping) else {}


def place_of(model: Model) -> str:
    """Where that code is: a directory, or the repository's name."""
    return model.base.directory or model.base.name


def refuse_remote_code(model: Model, roles: tuple[str, ...]) -> None:
    """Refuses a model type that transformers does not have, if its own code is not allowed or is not on this machine.

    Args:
        roles: the Auto classes whose code will run.

    Raises:
        ConfigError: the code is not allowed (the message names it), or it is not here.
    """
    code = own_code(model)
    wanted = [code[role] for role in roles if role in code]
    named = ", ".join(f"{reference.rpartition('.')[0]}.py ({reference.rpartition('.')[2]})" for reference in wanted)
    if not model.trust_remote_code:
        raise ConfigError(
            problem=f"{model.base.name} ({model.base.model_type}) comes with its own Python code in {place_of(model)}, "
            "and transformers has no class of its own for it",
            key="trust_remote_code",
            details=(f"would run: {named or 'nothing that its auto_map names'}",),
            remedy="read that code and allow it twice: --trust-remote-code on the command line, and `trust_remote_code: "
            "true` in the configuration (or --set trust_remote_code=true)",
        )
    if not model.base.directory:
        raise ConfigError(
            problem=f"the Python code of {model.base.name} ({named}) is not on this machine",
            key="base_model",
            remedy="download the repository's .py files and config.json into a directory and name it as base_model",
        )
    for role in roles:
        if role not in code:
            raise ConfigError(
                problem=f"auto_map in the config.json of {model.base.name} names no {role}",
                key="base_model",
                accepted=", ".join(code) or "nothing is named",
                remedy=f"add the code for {role} to auto_map, as file.Class",
            )


def run_own_class(reference: str, place: str) -> Any:
    """Print a message, then import `file.Class` from `place`. The message is shown even while libraries are quiet.

    Raises:
        ConfigError: the code can't be loaded.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    print(f"axmem_trace: running the code {reference} of {place}", file=user_stream("stderr"), flush=True)
    try:
        return get_class_from_dynamic_module(reference, place, local_files_only=True)
    except Exception as error:  # that code may raise any error
        raise ConfigError(
            problem=f"the code {reference!r} of {place} can't be loaded",
            key="trust_remote_code",
            details=(f"{type(error).__name__}: {error}",),
            remedy="check that the repository's .py files are in the folder of its config.json, and that the packages which "
            "they import are installed",
        ) from error
