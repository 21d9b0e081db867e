"""Builds an uninitialised model of the right class and dtypes. On meta nothing is allocated, for a model of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.folding.repetition import CannotFold
from axmem_trace.models.skeleton.attention_request import attention_without_packages, request_attention
from axmem_trace.models.skeleton.pinned_attention import attention_support_of_pins
from axmem_trace.notes import Notes
from axmem_trace.recipe.pins import hint_at_pin
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.originals import library_frame
from axmem_trace.tracing.patching import replaced_all


def build_skeleton(
    model_class: Any,
    config: Any,
    recipe: Recipe,
    dtype: torch.dtype,
    device: str,
    notes: Notes,
    replace_modules: Callable[[Any], None],
    make: Callable[[Any, Any], Any] = lambda model_class, config: model_class(config),
) -> Any:
    """Build `model_class(config)` as `from_pretrained` does before it reads weights, then tie weights.

    The contexts are those of transformers' `modeling_utils.py` `get_init_context` (default dtype, no tying yet) under
    `accelerate.init_empty_weights(include_buffers=True)`. `replace_modules` (a quantizer's) runs where
    `from_pretrained` calls `preprocess_model`: inside these contexts, before tying. Parameters keep the dtype that their
    module sets, except those of `_keep_in_fp32_modules(_strict)`.

    Args:
        device: `meta`, or `cpu` for real, initialised tensors.
        make: makes the model of its class and configuration.

    Raises:
        ConfigError: the class can't be built: an optional package is missing, it refuses a field or the attention kernel.
    """
    model: Any = None
    try:
        _set_dtype(config, dtype)
        reason = recipe.reasons.get("attention.kernel")
        asked = reason is not None and reason.origin != "default"
        support = attention_support_of_pins(model_class, recipe, notes)
        request_attention(config, recipe.attention.kernel, asked=asked)  # HRM-Text refuses FlashAttention here
        _request_experts(config, recipe.model.experts_implementation)
        with support, attention_without_packages(recipe.attention.kernel, notes), _creation_context(dtype, device):
            model = make(model_class, config)
            replace_modules(model)
    except (ConfigError, CannotFold):
        raise
    except Exception as error:
        if model is not None and library_frame(error.__traceback__) is None:  # a bug in `replace_modules`
            raise
        raise _unbuildable(recipe, model_class, error) from error
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    if device == "meta":
        move_real_tensors_to_meta(model)
    _keep_in_fp32(model, dtype)
    return model


def move_real_tensors_to_meta(model: nn.Module) -> None:
    """Replace real parameters and buffers, created with an explicit device, by meta tensors of the same shape and dtype."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to("meta")
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                meta = nn.Parameter(parameter.data.to("meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = meta


@contextmanager
def _creation_context(dtype: torch.dtype, device: str) -> Iterator[None]:
    from accelerate import init_empty_weights
    from transformers.initialization import no_tie_weights
    from transformers.modeling_utils import local_torch_dtype
    from transformers.monkey_patching import apply_patches

    with local_torch_dtype(dtype), apply_patches():
        if device != "meta":
            yield
            return
        with no_tie_weights(), init_empty_weights(include_buffers=True), _no_initialisation():
            yield


_INITIALISERS = tuple(
    """
    uniform_ normal_ trunc_normal_ constant_ ones_ zeros_ eye_ dirac_ xavier_uniform_ xavier_normal_ kaiming_uniform_
    kaiming_normal_ orthogonal_ sparse_
    """.split()
)


@contextmanager
def _no_initialisation() -> Iterator[None]:
    """Inside this context, the functions of `torch.nn.init` return at once: on meta they have no effect, but take time."""

    def leave_alone(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor

    names = [name for name in _INITIALISERS if hasattr(torch.nn.init, name)]
    with replaced_all(torch.nn.init, dict.fromkeys(names, leave_alone)):
        yield


def _set_dtype(config: Any, dtype: torch.dtype) -> None:
    """Source: transformers `modeling_utils.py` `_get_dtype`: the requested dtype, on sub-configurations too."""
    config.dtype = dtype
    for key in getattr(config, "sub_configs", None) or {}:
        part = getattr(config, key, None)
        if part is not None:
            part.dtype = dtype


def _request_experts(config: Any, implementation: str) -> None:
    """Set the implementation of fused experts, if it is one of transformers' own.

    `scattermoe` and `sonicmoe` are functions that axolotl's plugins register after loading.
    """
    if implementation in ("eager", "grouped_mm", "batched_mm"):
        config._experts_implementation = implementation


def _keep_in_fp32(model: Any, dtype: torch.dtype) -> None:
    """Cast parameters of modules that the model's class keeps in fp32, found by the rules of `core_model_loading.py`."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    from transformers.core_model_loading import build_glob_alternation

    pattern = build_glob_alternation(list(plan))[0]
    for name, tensor in [*model.named_parameters(), *_persistent_buffers(model)]:
        if tensor.dtype in (torch.float16, torch.bfloat16) and pattern.search(name):
            tensor.data = tensor.data.to(torch.float32)


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


class AttentionRefused(ConfigError):
    """The model's class does not support the requested attention kernel."""


def _unbuildable(recipe: Recipe, model_class: Any, error: Exception) -> ConfigError:
    import transformers

    name = getattr(model_class, "__name__", str(model_class))
    key, kind, hint = "base_model", ConfigError, hint_at_pin(recipe.axolotl, transformers.__version__)
    if isinstance(error, ImportError):
        remedy = (
            f"install the package that {name} needs (named above); for image towers: pip install 'axmem_trace[vision]'"
        )
    elif recipe.attention.kernel in str(error).replace("flex attention", "flex_attention"):
        key, kind = "attn_implementation", AttentionRefused
        remedy = "choose another `attn_implementation`; sdpa works for most models" + hint
        if recipe.attention.gemma4_hybrid:  # axolotl refuses it with any other kernel
            remedy = f"remove `gemma4_hybrid_attn_impl`, and write `attn_implementation: sdpa`{hint}"
    elif "through torch.nn.functional.scaled_dot_product_attention" in str(error):
        key, kind = "attn_implementation", AttentionRefused
        remedy = "write `attn_implementation: eager`, or remove the key, which has the same effect here"
    else:
        remedy = "check the base model's config.json and `overrides_of_model_config`; a newer transformers may help"
        remedy += hint
    return kind(
        problem=f"transformers {transformers.__version__} can't build {name} for {recipe.model.base.name}",
        key=key,
        details=(_why(recipe, name, error),),
        remedy=remedy,
    )


def _why(recipe: Recipe, name: str, error: Exception) -> str:
    kernel = recipe.attention.kernel
    if isinstance(error, KeyError) and error.args == (kernel,):  # Falcon's FALCON_ATTENTION_CLASSES
        return (
            f"KeyError: {error}: {name} has its own table of attention classes, without {kernel}; a run fails here too"
        )
    return f"{type(error).__name__}: {error}"
