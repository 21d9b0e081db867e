"""The contract between the training loop and a training method.

The loop (`training/run.py`) does the same as every `transformers.Trainer`: it copies batches to the GPU, accumulates
gradients, clips them and runs the optimizer. An `Objective` defines the differences: the content of a batch, the
computation of the loss, other models on the GPU, and the work before a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs

RunModel = Callable[..., Any]
"""The forward of the trained model, wrapped by accelerate (`prepare_model`): it runs in autocast, and its outputs are
fp32."""


class Objective(ABC):
    """One training method: supervised, distillation, diffusion, preference, ..."""

    takes_num_items: bool = False
    """Whether the loss is divided by the number of labels in all micro-batches of a step. `loss` then gets this number
    as `num_items_in_batch`. If not, the loop divides each loss by the number of micro-batches
    (`Trainer.model_accepts_loss_kwargs`)."""

    @abstractmethod
    def batches(self, recipe: Recipe) -> Sequence[Batch]:
        """The micro-batches of one optimizer step, `gradient_accumulation_steps` of them. The loop copies all of them to
        the GPU before the first forward, as `Trainer.get_batch_samples` does."""

    @abstractmethod
    def evaluation_batch(self, recipe: Recipe) -> Batch:
        """One batch of the evaluation loop."""

    @abstractmethod
    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """`Trainer.compute_loss`: the loss (a scalar), and the model's outputs.

        Tensors that the outputs and local variables keep alive are freed when the caller drops them, as in the
        library's own function.

        Args:
            run_model: see `RunModel`; it may be called several times, and not only with `inputs`.
            inputs: a batch of `batches` or `evaluation_batch`, on the GPU.
        """

    def before_step(self, run_model: RunModel, step: int) -> None:
        """The work before the batches of optimizer step `step` (1, 2, ...) exist, for example rollouts."""
        return

    def extra_models(self) -> Mapping[str, nn.Module]:
        """Models on the GPU in addition to the trained model, by their names in the report: reference, teacher, ..."""
        return {}
