"""The casts after loading and before the adapter is added: axolotl's upcast, peft's k-bit preparation, axolotl's cast
back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from axmem_trace.recipe.recipe import Precision, Recipe
from axmem_trace.tracing.patching import replaced

_DEFAULT_FP32_NORM_CLASSES = ("RMSNorm", "LayerNorm")


def cast_as_axolotl(model: Any, recipe: Recipe, *, experts_quantised: bool) -> Any:
    """Apply the casts of axolotl `loaders/model.py` `_configure_embedding_dtypes`, in its order.

    With quantised fused experts, axolotl skips k-bit preparation (`_prepare_model_for_quantization`).
    """
    precision = recipe.precision
    if precision.upcast_before:
        _cast_norms_and_embeddings(model, recipe, torch.float32, first_pass=True)
    adapted = recipe.adapter.kind in ("lora", "qlora")
    if recipe.quantisation.kbit_preparation and adapted and not experts_quantised:
        model = _prepare_for_kbit(model, recipe)
    if precision.cast_back:
        _cast_norms_and_embeddings(model, recipe, getattr(torch, precision.load_dtype), first_pass=False)
    _apply_assumed_dtypes(model, recipe)
    return model


def _cast_norms_and_embeddings(model: nn.Module, recipe: Recipe, dtype: torch.dtype, *, first_pass: bool) -> None:
    """Source: axolotl `loaders/model.py` `_convert_embedding_modules_dtype`.

    Norms are modules with `norm` anywhere in their dotted name. Gates (`*.gate`) are cast only in the first pass, so routers
    stay in fp32.
    """
    names = () if first_pass and not recipe.precision.upcast_embeddings else recipe.model.embedding_names
    norm_classes = _fp32_norm_classes(recipe.precision)
    for name, module in model.named_modules():
        if norm_classes and _has_class(module, norm_classes):
            module.to(torch.float32)
        elif "norm" in name:
            module.to(dtype)
        if first_pass and name.endswith(".gate"):
            module.to(dtype)
        if first_pass and recipe.model.base.model_type == "btlm":
            continue
        if any(part in name for part in names) and hasattr(module, "weight"):
            module.to(dtype)


def _fp32_norm_classes(precision: Precision) -> tuple[str, ...]:
    if not precision.fp32_norms:
        return ()
    return precision.fp32_norm_classes or _DEFAULT_FP32_NORM_CLASSES


def fp32_norm_modules(model: nn.Module, precision: Precision) -> list[nn.Module]:
    """The modules that `fp32_norms` keeps in fp32."""
    classes = _fp32_norm_classes(precision)
    return [module for module in model.modules() if classes and _has_class(module, classes)]


def _has_class(module: nn.Module, patterns: tuple[str, ...]) -> bool:
    """True if a pattern matches: one with a dot is the class's full path, one without is the end of the class's name.

    Source: axolotl `utils/fp32_norms.py`.
    """
    cls = type(module)
    for pattern in filter(str.strip, patterns):
        if pattern == f"{cls.__module__}.{cls.__name__}" if "." in pattern else cls.__name__.endswith(pattern):
            return True
    return False


def _prepare_for_kbit(model: Any, recipe: Recipe) -> Any:
    """Runs peft's own `prepare_model_for_kbit_training`: it freezes the model, and casts parameters that are not packed to
    fp32.

    If `Precision.kbit_skips` has names, axolotl changes peft's loop over the parameters so that embeddings and head keep
    their dtype (`monkeypatch/peft/utils.py`).
    """
    from peft import prepare_model_for_kbit_training

    def without_embeddings() -> Iterator[nn.Parameter]:
        for name, parameter in model.named_parameters():
            if not any(part in name for part in recipe.precision.kbit_skips):
                yield parameter

    with ExitStack() as stack:
        if recipe.precision.kbit_skips:
            stack.enter_context(replaced(model, "parameters", without_embeddings))
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.checkpointing.enabled)


def _apply_assumed_dtypes(model: Any, recipe: Recipe) -> None:
    precision = recipe.precision
    if precision.norm_dtype != "as_loaded":
        for name, module in model.named_modules():
            if "norm" in name:
                module.to(getattr(torch, precision.norm_dtype))
    if precision.embedding_dtype != "as_loaded":
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                module.to(getattr(torch, precision.embedding_dtype))
