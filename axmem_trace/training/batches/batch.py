"""`Batch`: what a data collator returns for one micro-batch, before it is copied to the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from axmem_trace.notes import Note
from axmem_trace.tracing.recorder import Recorder

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """CPU tensors with the values that libraries read."""

    inputs: Inputs
    """Tensors by the collator's names. A training method may read some that the model does not use."""
    num_true: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    """How many elements are true in masks that the model derives from pixels, by shape."""
    notes: tuple[Note, ...] = ()


def place_batch(recorder: Recorder, batch: Batch) -> Inputs:
    """The batch copied to the GPU."""
    recorder.values.num_true.update(batch.num_true)
    for note in batch.notes:
        recorder.notes.append(note)
    return {name: recorder.place(value) for name, value in batch.inputs.items()}


def place_number(recorder: Recorder, number: int) -> torch.Tensor:
    """A number that the loop keeps on the GPU, as a 0-dimensional int64 tensor."""
    with recorder.paused():
        value = torch.tensor(number)
    return recorder.place(value)
