"""Callbacks of `transformers.Trainer` that read the peaks. All trainers of axolotl and TRL call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

OTHER = "other"
"""The time between the phases: logging, checkpoints, the end."""


class PeakCallback(TrainerCallback):
    """Calls `read` with the phase that has just ended. axolotl resets the peaks in `Trainer.log`, which is called after
    `on_step_end` and before `on_log`. Evaluation has no callback at its beginning, so the peaks are read after each of
    its batches.

    Attributes:
        read: takes `load`, `step_1`, `step_2` (all later steps), `eval` or `other`; it raises nothing.
        finish: called when training has ended, before anything is saved.
    """

    def __init__(self, read: Callable[[str], None], finish: Callable[[], None]) -> None:
        """Stores the two functions."""
        self.read, self.finish = read, finish
        self._steps = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Called when model and optimizer are prepared (with FSDP and DeepSpeed, they are sharded already)."""
        self.read("load")

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """The peaks since the last phase belong to no phase."""
        self.read(OTHER)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called after all micro-batches and the optimizer of one step. In a resumed run, the first step is its own
        first step."""
        self._steps += 1
        self.read("step_1" if self._steps == 1 else "step_2")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Called after one batch of an evaluation."""
        self.read("eval")

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Called when axolotl has just reset the peaks, on rank 0."""
        self.read(OTHER)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Called when a checkpoint was written."""
        self.read(OTHER)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Called when training has ended."""
        self.read(OTHER)
        self.finish()
