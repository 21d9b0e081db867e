"""Switch gradient checkpointing on in the model, with the settings that axolotl and the trainer use."""

from __future__ import annotations

import warnings
from typing import Any

from axmem_trace.errors import ConfigError
from axmem_trace.models.built import unwrapped
from axmem_trace.models.selective_checkpointing import make_context_function, note_selective
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import Recipe


def enable_checkpointing(model: Any, recipe: Recipe, notes: Notes) -> None:
    """Switch checkpointing on with the recipe's arguments. This is the trainer's call, the last one before training.

    Source: axolotl `loaders/model.py` `_configure_embedding_dtypes` (adapters), transformers `trainer.py`
    (`gradient_checkpointing_enable` before training, which overrides the loader's arguments).

    Raises:
        ConfigError: the model class does not support it.
    """
    checkpointing = recipe.checkpointing
    if not checkpointing.enabled:
        return
    kwargs = {**checkpointing.kwargs, "use_reentrant": checkpointing.use_reentrant}
    if checkpointing.selective_save:
        if not checkpointing.selective_offload:  # offloading needs the recorder: see `training/offloading`
            kwargs["context_fn"] = make_context_function(model, checkpointing)
        note_selective(checkpointing, recipe.attention.kernel, notes)
    try:
        switch_on(model, kwargs)
    except ValueError as error:
        raise _cannot_checkpoint(model, str(error)) from error


def switch_on(model: Any, kwargs: dict[str, Any]) -> None:
    """`gradient_checkpointing_enable`, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def refuse_unsupported_checkpointing(model: Any, recipe: Recipe) -> None:
    """Refuse checkpointing for a class that does not support it. k-bit preparation switches it on before the trainer does.

    Source: transformers `modeling_utils.py` `gradient_checkpointing_enable`.

    Raises:
        ConfigError: the model class does not support it.
    """
    if recipe.checkpointing.enabled and not getattr(model, "supports_gradient_checkpointing", True):
        name = type(model).__name__
        raise _cannot_checkpoint(model, f"{name} does not support gradient checkpointing.")


def _cannot_checkpoint(model: Any, why: str) -> ConfigError:
    return ConfigError(
        problem=f"{type(unwrapped(model)).__name__} can't checkpoint activations",
        key="gradient_checkpointing",
        value=True,
        details=(why,),
        remedy="set gradient_checkpointing: false for this model",
    )
