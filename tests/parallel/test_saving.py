"""The gathers of all ranks, and the memory of rank 0's host, when a sharded model is saved."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.rank_configs import make_rank_config
from support.real_ranks import Case, record_on_meta, run_in_processes, tiny_run

from axmem_trace import estimate
from axmem_trace.ledger import Ledger
from axmem_trace.report import Report

# the tiny llama: vocabulary 96, hidden 32, MLP 48, 2 layers
LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32
EMBEDDING = 96 * 32
PARAMETERS = 2 * LAYER + 2 * EMBEDDING + 32
FULL = {"state_dict_type": "FULL_STATE_DICT"}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 8, "lora_target_linear": True}
ADAPTERS = 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))


def report_of(tmp_path: Path, gpus: int, **keys: Any) -> Report:
    return estimate(make_rank_config(tmp_path, **keys), num_gpus=gpus, hub="never")


def gathered(report: Report) -> int:
    """Bytes on the GPU above those that are alive before and after."""
    save = report.phases["save"]
    assert save.end_bytes == report.phases["step_2"].end_bytes
    return save.allocated_bytes - save.end_bytes


def test_a_full_state_dict_gathers_one_tensor_at_a_time(tmp_path: Path) -> None:
    report = report_of(tmp_path, 8, fsdp_config=FULL)
    assert gathered(report) == 2 * EMBEDDING  # the largest
    # all of it on rank 0's host, and later two bf16 states of each parameter, with their counters of 4 bytes
    assert 4 * PARAMETERS <= report.ranks[0].host_bytes <= 4 * PARAMETERS + 21 * 8
    assert report.machine is not None
    assert report.machine.held_bytes < 8 * PARAMETERS  # and on no other


def test_without_states_rank_0_collects_the_model_alone(tmp_path: Path) -> None:
    report = report_of(tmp_path, 8, fsdp_config=FULL, save_only_model=True)
    assert 2 * PARAMETERS <= report.ranks[0].host_bytes <= 2 * PARAMETERS + 21 * 8


def test_each_rank_copies_its_parts_for_a_sharded_checkpoint(tmp_path: Path) -> None:
    """8 ranks: two bf16 states of an eighth of all parameters, on the host of each; nothing on the GPU."""
    report = report_of(tmp_path, 8, fsdp_config={"reshard_after_forward": True})
    assert gathered(report) == 0
    (row,) = report.ranks
    assert 4 * PARAMETERS // 8 <= row.host_bytes <= 4 * PARAMETERS // 8 + 21 * 8
    assert report.machine is not None
    assert report.machine.held_bytes == 8 * row.host_bytes


def test_states_of_adapters_are_collected_too(tmp_path: Path) -> None:
    """The frozen base, in bf16, is whole on rank 0's host; then two fp32 states of each adapter are."""
    report = report_of(tmp_path, 8, fsdp_config=FULL, **LORA)
    assert report.ranks[0].host_bytes >= 2 * PARAMETERS + 4 * ADAPTERS
    assert 8 * ADAPTERS < 2 * PARAMETERS + 4 * ADAPTERS
    assert report.machine is not None
    assert report.machine.held_bytes < report.ranks[0].host_bytes + 7 * 1024


def test_an_offloaded_shard_is_first_copied_to_the_gpu(tmp_path: Path) -> None:
    report = report_of(tmp_path, 8, fsdp_config={**FULL, "offload_params": True})
    assert gathered(report) == 2 * EMBEDDING + 1024  # 2 * EMBEDDING / 8 is 768


@pytest.mark.parametrize(
    ("options", "keys", "saves"),
    [
        ({}, {"save_only_model": True}, False),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, {"save_strategy": "no"}, False),
        ({}, {}, True),  # each rank copies its parts
        ({"final_state_dict_type": "FULL_STATE_DICT"}, {}, True),
        (
            {"state_dict_type": "FULL_STATE_DICT", "final_state_dict_type": "SHARDED_STATE_DICT"},
            {},
            True,
        ),  # checkpoints
        (
            {"state_dict_type": "FULL_STATE_DICT", "final_state_dict_type": "SHARDED_STATE_DICT"},
            {"save_strategy": "no"},
            False,
        ),
        ({}, LORA, True),  # the adapters, at the end
    ],
)
def test_cases_in_which_the_whole_model_is_saved(
    tmp_path: Path, options: dict[str, Any], keys: dict[str, Any], saves: bool
) -> None:
    report = report_of(tmp_path, 4, fsdp_config={"reshard_after_forward": True, **options}, **keys)
    assert ("save" in report.phases) is saves


def test_all_adapters_are_gathered_at_the_same_time(tmp_path: Path) -> None:
    report = report_of(tmp_path, 4, fsdp_config={"reshard_after_forward": True}, **LORA)
    # fp32, 28 tensors of whole blocks or a part of one
    assert 4 * ADAPTERS <= gathered(report) <= 4 * ADAPTERS + 28 * 512
    assert report.ranks[0].host_bytes >= 4 * ADAPTERS


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **settings}, "bf16": {"enabled": True}}}


def test_zero_3_gathers_if_it_is_requested(tmp_path: Path) -> None:
    gathers = zero(3, stage3_gather_16bit_weights_on_model_save=True, stage3_param_persistence_threshold=0)
    report = report_of(tmp_path, 8, **gathers)
    assert gathered(report) == 2 * EMBEDDING
    assert report.ranks[0].host_bytes >= 2 * PARAMETERS
    assert "save" not in report_of(tmp_path, 8, **zero(3, stage3_param_persistence_threshold=0)).phases


@pytest.mark.parametrize("stage", [1, 2])
def test_every_rank_copies_the_model_to_its_host_with_zero_1_and_2(tmp_path: Path, stage: int) -> None:
    report = report_of(tmp_path, 4, **zero(stage))
    assert gathered(report) == 0
    assert report.machine is not None
    assert report.machine.held_bytes >= 4 * 2 * PARAMETERS


def save_for_real(cases: Sequence[Case], rank: int, num_ranks: int, folder: str) -> None:
    """Runs PyTorch's own gather in a real process, called as in accelerate."""
    import torch
    import torch.distributed as dist
    from support.kernel_recording import recording_on
    from support.real_ranks import _read
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from axmem_trace.models import build_model
    from axmem_trace.parallel.install import divide

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    ledgers = []
    for case in cases:
        recipe, recording = _read(case, num_ranks), recording_on("cpu")
        built = build_model(recipe, device="cpu")
        divide(recipe, recording, built)
        recording.recorder.mark("save", 0)
        with recording:
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
            state = get_model_state_dict(built.module, options=options)
        assert len(state) == (21 if rank == 0 else 0)
        ledgers.append(recording.recorder.make_ledger())
    (Path(folder) / f"rank{rank}").write_bytes(pickle.dumps(ledgers))
    dist.barrier()
    dist.destroy_process_group()


def test_the_gathered_tensors_equal_those_of_pytorch(tmp_path: Path) -> None:
    """Two ranks and an odd vocabulary: the second rank pads its shard of the embedding and of the head."""
    case = Case({**tiny_run(tmp_path), "fsdp_version": 2, "fsdp_config": FULL})
    (real,) = run_in_processes(save_for_real, [case], 2)
    for rank in (0, 1):
        assert sizes(record_on_meta(case, 2, rank=rank)) == sizes(real[rank])


def sizes(ledger: Ledger) -> Counter[int]:
    """The sizes without PyTorch's wrapper around an unfinished gather, which has the same nominal size but no memory
    (`_make_wrapper_subclass`, torch 2.14 `distributed/_functional_collectives.py`)."""
    return Counter(
        each.nbytes
        for each in ledger.allocations
        if each.phase == "save" and each.device == "gpu" and "_wrap_tensor" not in each.op
    )
