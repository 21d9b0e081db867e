"""The errors that a user sees if the model's own code fails during a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from axmem_trace.errors import AxmemError, ConfigError, in_one_line
from axmem_trace.models.built import BuiltModel, unwrapped
from axmem_trace.recipe.pins import hint_at_pin
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.originals import library_frame

_SECOND_BACKWARD = "Trying to backward through the graph a second time"
_LEAF = "a leaf Variable that requires grad is being used in an in-place operation"


@contextmanager
def model_failures_reported(built: BuiltModel, recipe: Recipe) -> Iterator[None]:
    """While open, an exception in the model's code becomes an error of the configuration, with file and line.

    An exception in this package's own code is a bug, and is not changed.

    Raises:
        ConfigError: the model's code can't run with this configuration, or reads values that a trace does not have.
    """
    try:
        yield
    except AxmemError:
        raise
    except Exception as error:
        if recipe.checkpointing.enabled and recipe.checkpointing.use_reentrant and _SECOND_BACKWARD in str(error):
            raise _reentrant_over_shared_input(type(unwrapped(built.module)).__name__, error, recipe) from error
        place = _place(error.__traceback__)
        if not place:
            raise
        raise _as_config_error(type(unwrapped(built.module)).__name__, place, error, recipe) from error


def is_outside_this_package(error: Exception) -> bool:
    """Whether the cause is the user's configuration, the model's code or a library. False: it is a bug in this
    package."""
    return isinstance(error, AxmemError) or library_frame(error.__traceback__) is not None


def _reentrant_over_shared_input(class_name: str, error: Exception, recipe: Recipe) -> ConfigError:
    """The error for Llama 3.2, in which all layers read the tower's output: the backward of each layer continues
    through this output into the tower.

    Source: torch `utils/checkpoint.py` `CheckpointFunction` (only its positional tensors are detached), transformers
    `modeling_layers.py` `GradientCheckpointingLayer` (keyword arguments are bound before).
    """
    return ConfigError(
        problem=f"{recipe.model.base.name}: reentrant checkpointing stops where several layers of {class_name} share an "
        "input that requires gradients",
        key="gradient_checkpointing_kwargs" if recipe.checkpointing.kwargs else "gradient_checkpointing",
        value="use_reentrant: true",
        details=(in_one_line(error),),
        remedy="set `gradient_checkpointing_kwargs: {use_reentrant: false}`",
    )


def _place(trace: TracebackType | None) -> str:
    """File, line and function of the library whose call failed; empty if the error is in this package."""
    found = library_frame(trace)
    if found is None:
        return ""
    code = found.tb_frame.f_code
    parts = Path(code.co_filename).parts
    inside = parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else parts[-2:]
    return f"{'/'.join(inside)}, line {found.tb_lineno}, in {code.co_name}"


def _as_config_error(class_name: str, place: str, error: Exception, recipe: Recipe) -> ConfigError:
    import transformers

    text = " ".join(str(error).split())
    if "meta tensor" in text or "register_meta" in text or "data-dependent" in text:
        problem = (
            f"{class_name} reads values of tensors that a trace does not have: sizes in it depend on what it computes"
        )
        remedy = (
            "none is known (of masks, only the values of the largest are not followed: try `attn_implementation: sdpa` "
        )
        remedy += "or a smaller `sequence_len`)"
    elif _LEAF in text:
        problem = f"{class_name} changes its embeddings in place, which torch refuses where they require gradients"
        remedy = "a run stops here too: axolotl makes the embeddings' output require gradients for every adapter. "
        remedy += "Train this model without one"
    else:
        problem = f"{class_name} stops in its own code with this configuration"
        remedy = "a run most likely stops here too: check config.json, the adapter's targets and sequence_len against "
        remedy += "the message"
        if recipe.quantisation.method == "bnb_4bit":
            remedy += ", and leave a layer whose weight it multiplies by itself unquantised (`bnb_config_kwargs: "
            remedy += "{llm_int8_skip_modules: [its name]}`)"
        remedy += (
            hint_at_pin(recipe.axolotl, transformers.__version__)
            + "; if such a run is known to work, please report it as a bug"
        )
    return ConfigError(
        problem=f"{recipe.model.base.name}: {problem}",
        key="base_model",
        details=(f"{type(error).__name__}: {in_one_line(text, 1000)}", f"at {place}"),
        remedy=remedy,
    )
