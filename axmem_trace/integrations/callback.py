"""When the peaks are read: callbacks of `transformers.Trainer`, which axolotl's and TRL's trainers all call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

OTHER = "other"
"""Between the phases: logging, checkpoints, the end."""


class PeakCallback(TrainerCallback):
    """Calls `read` with the phase that has just ended. `Trainer.log`, where axolotl resets the peaks, comes after
    `on_step_end` and before `on_log`; evaluation has no callback at its beginning, so each of its batches is read.

    Attributes:
        read: takes `load`, `step_1`, `step_2` (all later steps), `eval` or `other`; raises nothing.
        finish: called when training has ended, before anything is saved.
    """

    def __init__(self, read: Callable[[str], None], finish: Callable[[], None]) -> None:
        """Keeps the two functions."""
        self.read, self.finish = read, finish
        self._steps = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Model and optimizer are prepared (FSDP and DeepSpeed have sharded)."""
        self.read("load")

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Whatever came since the last phase is none."""
        self.read(OTHER)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """All micro-batches and the optimizer of one step; a run that resumes begins with its own first step."""
        self._steps += 1
        self.read("step_1" if self._steps == 1 else "step_2")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """One batch of an evaluation."""
        self.read("eval")

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """axolotl has just reset the peaks, on rank 0."""
        self.read(OTHER)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint was written."""
        self.read(OTHER)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Training has ended."""
        self.read(OTHER)
        self.finish()
