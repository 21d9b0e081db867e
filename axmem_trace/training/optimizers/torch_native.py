"""torch's own optimizers: the real classes, run on meta."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.recipe.run import Implementation
from axmem_trace.training.optimizers.request import Request, to_bool
from axmem_trace.training.optimizers.traced import TracedOptimizer


def implementation_of(request: Request) -> Implementation:
    """The implementation that a torch optimizer uses on a GPU.

    `adamw_torch_fused` is fused (transformers/trainer_optimizer.py, `_get_adamw_torch`); every other class gets no such
    argument and uses `foreach` on CUDA (torch/optim/optimizer.py, `_default_to_fused_or_foreach`).
    `--assume optimizer_implementation` overrides this, and so does an implementation in the recipe that is not the
    default.
    """
    wanted = request.recipe.optimizer.implementation
    reason = request.recipe.reasons.get("optimizer.implementation")
    assumed = reason is not None and reason.origin == "assume"
    if wanted != "library" and (assumed or wanted != "fused"):
        return wanted
    return "fused" if request.name == "adamw_torch_fused" else "foreach"


def implementation_kwargs(request: Request) -> dict[str, Any]:
    """`foreach` and `fused` as arguments of the constructor."""
    implementation = implementation_of(request)
    request.note("traced", f"torch.optim steps with its {implementation} code", key="optimizer.implementation")
    by_implementation: dict[str, dict[str, Any]] = {
        "fused": {"fused": True},
        "foreach": {"foreach": None, "fused": None},
        "for-loop": {"foreach": False, "fused": False},
    }
    return by_implementation[implementation]


def build_adamw(request: Request) -> TracedOptimizer:
    """`torch.optim.AdamW` (transformers/trainer_optimizer.py, `_get_adamw_torch`)."""
    kwargs = implementation_kwargs(request)
    return request.traced(torch.optim.AdamW(request.groups, lr=request.lr, **request.adam_kwargs, **kwargs))


def build_sgd(request: Request) -> TracedOptimizer:
    """`torch.optim.SGD` (transformers/trainer_optimizer.py, `_get_sgd`): no state without `momentum`."""
    kwargs: dict[str, Any] = {key: request.arg(key, 0.0, float) for key in ("momentum", "dampening", "weight_decay")}
    kwargs["nesterov"] = request.arg("nesterov", False, to_bool)
    kwargs.update(implementation_kwargs(request))
    return request.traced(_construct(request, torch.optim.SGD, **kwargs))


def build_adagrad(request: Request) -> TracedOptimizer:
    """`torch.optim.Adagrad` (transformers/trainer_optimizer.py, `_get_adagrad`): the constructor makes the sums, so
    they exist before the first step. It has no fused kernel for CUDA."""
    if implementation_of(request) == "fused":
        raise ConfigError(
            "Adagrad has no fused kernel for CUDA",
            key="optimizer_implementation",
            value="fused",
            accepted="foreach, for-loop",
        )
    kwargs: dict[str, Any] = {"lr_decay": request.arg("lr_decay", 0.0, float), "eps": request.arg("eps", 1e-10, float)}
    kwargs["weight_decay"] = request.arg("weight_decay", 0.0, float)
    kwargs.update(implementation_kwargs(request))
    return request.traced(_construct(request, torch.optim.Adagrad, **kwargs))


def build_rmsprop(request: Request) -> TracedOptimizer:
    """`torch.optim.RMSprop` (transformers/trainer_optimizer.py, `_get_rmsprop`)."""
    if implementation_of(request) == "fused":
        raise ConfigError(
            "RMSprop has no fused implementation",
            key="optimizer_implementation",
            value="fused",
            accepted="foreach, for-loop",
        )
    kwargs: dict[str, Any] = {key: request.arg(key, 0.0, float) for key in ("momentum", "weight_decay")}
    kwargs.update(alpha=request.arg("alpha", 0.99, float), eps=request.arg("eps", 1e-8, float))
    kwargs["centered"] = request.arg("centered", False, to_bool)
    implementation = implementation_kwargs(request)
    return request.traced(_construct(request, torch.optim.RMSprop, foreach=implementation["foreach"], **kwargs))


def _construct(request: Request, optimizer_class: type[torch.optim.Optimizer], **kwargs: Any) -> torch.optim.Optimizer:
    """Makes an optimizer of the class with the recipe's groups. Errors of torch are reported as errors of the
    configuration."""
    try:
        return optimizer_class(request.groups, lr=request.lr, **kwargs)  # type: ignore[call-arg]
    except ValueError as error:
        raise ConfigError(f"{request.name}: {error}", key="optim_args", value=dict(request.args)) from error


def build_adafactor(request: Request) -> TracedOptimizer:
    """transformers' `Adafactor` with a fixed learning rate (transformers/trainer_optimizer.py, `_get_adafactor`, which
    ignores `optim_args`). It is the real class, which updates one tensor after the other, with fp32 copies of gradient
    and weight, and an fp32 update."""
    from transformers.optimization import Adafactor

    optimizer = Adafactor(request.groups, lr=request.lr, scale_parameter=False, relative_step=False)
    return request.traced(optimizer)
