"""Boolean masks as indices, and known values that the host reads."""

from __future__ import annotations

import torch
from support.kernel_recording import gpu_recording

MASK = torch.tensor([[True, False, True], [False, False, True]])


def test_a_known_mask_decides_the_shape() -> None:
    recording = gpu_recording()
    recorder = recording.recorder
    with recording:
        picked = torch.empty(2, 3, 5, device="meta")[recorder.place(MASK)]
    assert picked.shape == (3, 5)


def test_an_expanded_mask_is_counted_through_its_view() -> None:
    recording = gpu_recording()
    recorder = recording.recorder
    with recording:
        states = torch.empty(2, 3, 1 << 20, device="meta")
        picked = states[recorder.place(MASK).unsqueeze(-1).expand_as(states)]
    assert picked.shape == (3 << 20,)


def test_the_indices_live_while_the_operator_runs() -> None:
    recording = gpu_recording()
    recorder = recording.recorder
    with recording:
        torch.empty(2, 3, 5, device="meta")[recorder.place(MASK)]
    # nonzero: 3 elements x 2 dimensions x 8 bytes, freed before the result (3 x 5 fp32) is allocated
    sizes = [each.nbytes for each in recorder.make_ledger().allocations if each.op == "aten.index.Tensor"]
    assert sizes == [48, 60]


def test_known_values_reach_the_host() -> None:
    recording = gpu_recording()
    recorder = recording.recorder
    with recording:
        grid = recorder.place(torch.tensor([[1, 4, 6]]))
        assert (grid.prod(-1) // 4).tolist() == [6]
        assert (grid * 2).cpu().tolist() == [[2, 8, 12]]
