"""`measure_on_gpu.py` under torchrun, with two processes on the CPU that communicate by gloo."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.new_process import in_new_processes
from support.paths import SCRIPTS
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError

sys.path.insert(0, str(SCRIPTS))  # also in the processes that are started here
# FSDP broadcasts states only from GPUs
_FSDP1 = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "sync_module_states": False}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp1": {"fsdp_version": 1, "fsdp_config": _FSDP1},
    "fsdp2": {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}},
}


def read(model: str, **keys: Any) -> Any:
    config = {
        "base_model": model,
        "sequence_len": 16,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "optimizer": "adamw_torch",
        "bf16": False,
        "attn_implementation": "eager",
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    return read_recipe(config, assumptions=("lora_kernels=false",), num_gpus=2, axolotl="0.19.0", hub="never")


def run_rank(rank: int, folder: str, model: str) -> None:
    """Does the work of torchrun's process, with the CPU in place of a card."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    import gpu_run
    import torch
    from gpu_ranks import gather, joined

    torch.set_num_threads(1)
    gpu_run.read_allocator = lambda: {"end_bytes": rank}
    gpu_run.GpuRecorder._reset = lambda self: None
    with joined("cpu"):
        for name, keys in ENGINES.items():
            recipe = read(model, **keys)
            gpu_run.check_ranks(recipe)
            run = gpu_run.make_run(recipe, "cpu")
            before = [each.detach().clone() for each in run.model.parameters()]
            run.record()
            run.recorder.close()
            phases = [(each["phase"], each["step"]) for each in run.recorder.phases]
            moved = [
                not first.equal(last)
                for first, last in zip(before, run.model.parameters(), strict=True)
                if first.numel()
            ]
            everywhere = gather({"phases": phases, "moved": any(moved), "marks": run.recorder.phases[-1]["end_bytes"]})
            Path(folder, f"{name}-{rank}").write_bytes(pickle.dumps(everywhere))
    os._exit(0)  # a normal end of the interpreter sometimes aborts, because gloo's threads still run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    model = str(write_tiny_model("llama", folder / "llama"))
    os.environ["MASTER_PORT"] = "29713"
    exit_codes = in_new_processes(run_rank, [(rank, str(folder), model) for rank in range(2)])
    del os.environ["MASTER_PORT"]
    assert exit_codes == [0, 0]
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_trains_in_two_processes(results: Path, engine: str) -> None:
    first, second = (pickle.loads((results / f"{engine}-{rank}").read_bytes()) for rank in range(2))
    assert first == second  # each has the results of both
    assert [each["marks"] for each in first] == [0, 1]
    assert all(each["moved"] for each in first)
    passes = [("forward", 1), ("backward", 1), ("forward", 1), ("backward", 1), ("optimizer", 1)]
    assert [phase for phase in first[0]["phases"] if phase[1] == 1] == passes


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({}, "num_gpus"),  # two GPUs are configured, but torchrun has started no process
        ({"fsdp_version": 1, "fsdp_config": {"cpu_ram_efficient_loading": True}}, "cpu_ram_efficient_loading"),
        ({"fsdp_version": 1, "fsdp_config": {"offload_params": True}}, "offload_params"),
        ({"deepspeed": "zero2.json"}, "zero2"),
    ],
)
def test_runs_that_are_not_possible_are_refused(
    tmp_path: Path, monkeypatch: Any, keys: dict[str, Any], match: str
) -> None:
    import gpu_ranks

    if keys:
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=match):
        gpu_ranks.check_ranks(read(str(write_tiny_model("llama", tmp_path / "llama")), **keys))


def test_a_recipe_for_ranks_runs_in_the_fake_group(tmp_path: Path, monkeypatch: Any) -> None:
    import measure_on_gpu

    environments = []

    def run(command: list[str], env: dict[str, str], **options: Any) -> SimpleNamespace:
        environments.append((env.get("FAKE_RANKS"), command))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(measure_on_gpu, "find_refusal", lambda: "")
    monkeypatch.setattr(measure_on_gpu.subprocess, "run", run)
    assert measure_on_gpu.main(["--recipes", "lora,ranks-fsdp1-full", "-o", str(tmp_path)]) == 0
    (one, _), (several, command) = environments
    assert (one, several) == (None, "4")
    assert command[-2:] == ["--axolotl", "0.19.0"]


def test_only_one_configuration_at_a_time(monkeypatch: Any, capsys: Any) -> None:
    import measure_on_gpu

    monkeypatch.setattr(measure_on_gpu, "find_refusal", lambda: "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert measure_on_gpu.main(["--recipes", "lora"]) == 2
    assert "one configuration" in capsys.readouterr().err
