"""Convolutions: cuDNN's workspace is named with a size, and turns no verdict."""

from __future__ import annotations

import pytest
import torch
from support.core_probe import leaf
from support.kernel_recording import gpu_recording, run_backward

from axmem_trace.report.verdict import judge


@pytest.mark.parametrize("transposed", [False, True])
def test_as_a_product_of_matrices(transposed: bool) -> None:
    """2 images of 8 x 8 in bf16, patches of 4 x 4 of 3 channels.

    2 * 2 * 2 positions of 3 * 16 values are 384; 2 * 3 * 64 = 384 of input and 2 * 16 * 4 = 128 of output in another layout:
    896 values of 2 bytes. A transposed convolution reads the small side.
    """
    weight = leaf(16, 3, 4, 4)
    images, maps = leaf(2, 3, 8, 8), leaf(2, 16, 2, 2)
    recording = gpu_recording()
    with recording:
        recording.recorder.mark("forward", 1)
        run = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
        out = run(maps if transposed else images, weight, stride=4)
        recording.recorder.mark("backward", 1)
        run_backward(out)
    (note,) = recording.recorder.notes.of("workspace.cudnn")  # forward and backward say the same
    assert (note.kind, note.direction, note.bytes) == ("assumed", "more", 1792)
    assert judge(True, [note], free_bytes=1) == (True, "")
