"""The frozen model with which a policy is compared, and how a trainer calls it.

Source: TRL 1.14.1 `trainer/utils.py` `use_adapter`, `models/utils.py` `disable_gradient_checkpointing`; accelerate
`accelerator.py` `prepare_model(evaluation_mode=True)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from axmem_trace.models.built import BuiltModel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.prepared import prepared_forward


class ReferenceModel:
    """A reference. `model` is None if it is the policy itself, or if there is none."""

    model: Any = None
    has_wrapper = False
    """Whether it is a separate model with its own wrapper, which gathers its parameters."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    @property
    def scored(self) -> Any:
        """The model that `ready`'s forward runs."""
        return self.policy if self.model is None else self.model

    @contextmanager
    def ready_policy(self) -> Iterator[None]:
        """While open, the policy runs without gradients and checkpointing."""
        with torch.no_grad(), checkpointing_off(self.policy):
            yield

    @contextmanager
    def ready(self, run_model: RunModel) -> Iterator[RunModel]:
        """While open, the reference runs without gradients and checkpointing; yields the forward to call.

        Args:
            run_model: the policy's forward.
        """
        with self.ready_policy():
            yield run_model


class AdaptersOff(ReferenceModel):
    """The policy without its adapters."""

    @contextmanager
    def ready(self, run_model: RunModel) -> Iterator[RunModel]:
        """See `ReferenceModel`."""
        with super().ready(run_model) as forward, self.policy.disable_adapter():
            yield forward


class AdapterCopy(ReferenceModel):
    """The policy with the frozen copy of its adapter, `ref`."""

    @contextmanager
    def ready(self, run_model: RunModel) -> Iterator[RunModel]:
        """See `ReferenceModel`."""
        with super().ready(run_model) as forward:
            before = self.policy.active_adapter
            self.policy.set_adapter("ref")
            try:
                yield forward
            finally:
                self.policy.set_adapter(before)


class SecondModel(ReferenceModel):
    """A separate model in evaluation mode. accelerate wraps it like the policy, or only FSDP wraps it."""

    def __init__(self, policy: Any, built: BuiltModel, recipe: Recipe) -> None:
        super().__init__(policy)
        assert built.reference is not None
        self.model = built.reference.eval()
        self.has_wrapper = built.reference_forward is not None
        self._forward = built.reference_forward or prepared_forward(self.model, recipe.precision)

    @contextmanager
    def ready(self, run_model: RunModel) -> Iterator[RunModel]:
        """See `ReferenceModel`."""
        with super().ready(run_model):
            yield self._forward


def make_reference(recipe: Recipe, built: BuiltModel) -> ReferenceModel:
    """The one of the recipe."""
    kind, policy = recipe.objective.reference.kind, built.module
    if built.reference is not None:
        return SecondModel(policy, built, recipe)
    if kind == "adapters_off":
        return AdaptersOff(policy)
    if kind == "adapter_copy":
        return AdapterCopy(policy)
    return ReferenceModel(policy)


@contextmanager
def checkpointing_off(model: Any) -> Iterator[None]:
    """While open, layers run without checkpointing."""
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True
