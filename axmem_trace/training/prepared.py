"""A model's forward, wrapped as in accelerate's `prepare_model`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from axmem_trace.recipe.model import Precision


def autocast(precision: Precision) -> AbstractContextManager[Any]:
    """accelerate `utils/modeling.py`, `get_mixed_precision_context_manager`."""
    if not precision.autocast:
        return nullcontext()
    return torch.autocast("cuda", dtype=getattr(torch, precision.autocast_dtype))


def prepared_forward(model: Any, precision: Precision) -> Any:
    """The forward in autocast. Its floating-point outputs are converted to fp32 if the recipe says so."""

    def run(**inputs: Any) -> Any:
        with autocast(precision):
            outputs = model(**inputs)
        if precision.output_dtype == "float32":
            from accelerate.utils.operations import convert_to_fp32

            outputs = convert_to_fp32(outputs)
        return outputs

    return run


def through_wrapper(call: Callable[..., Any], module: Any, method: Callable[[], Any]) -> Any:
    """Runs `method` inside the wrapper's forward and returns its result. So the wrapper gathers the parameters that
    `method` uses directly (TRL 1.14.1 `models/utils.py` `_ForwardRedirection`).

    Args:
        call: the wrapper's forward.
        module: the model inside the wrapper, whose forward is replaced for this call.
    """
    original = module.forward

    def inside(*args: Any, **kwargs: Any) -> Any:
        module.forward = original
        return method()

    module.forward = inside
    return call()
