"""`scripts/measure_on_gpu.py`: all of it that needs no GPU, and the loop on real tensors of the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = {
    "base_model": "NousResearch/Llama-2-7b-hf", "sequence_len": 32, "micro_batch_size": 2, "bf16": True,
    "gradient_accumulation_steps": 1, "optimizer": "adamw_torch_fused", "val_set_size": 0, "sdp_attention": True,
    "datasets": [{"path": "any", "type": "alpaca"}],
    "overrides_of_model_config": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 320, "head_dim": 16,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def read_tiny(**changes):
    from axmem_trace.recipe import read_recipe

    assumptions = {"autocast": False, "upcast_before": False, "lora_kernels": False}
    return read_recipe({**TINY, **changes}, hub="never", assumptions=assumptions)


def test_refuses_where_there_is_no_gpu(capsys, monkeypatch, tmp_path):
    import measure_on_gpu
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure_on_gpu.main([str(tmp_path / "config.yml")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "nothing can be measured" in output.err
    assert output.err.count("\n") == 1


def test_bad_arguments_are_told(capsys):
    import measure_on_gpu

    with pytest.raises(SystemExit) as stop:
        measure_on_gpu.main(["config.yml", "--set", "no equals sign"])
    assert stop.value.code == 2
    assert "--set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optimizer": "adamw_bnb_8bit"}, "optimizer"),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rms_norm": True}, "Liger"),
        ({"chunked_cross_entropy": True}, "loss"),
        ({"tiled_mlp": True}, "tiled_mlp"),
    ],
)
def test_stand_ins_are_refused(changes, match):
    import gpu_run

    from axmem_trace.errors import ConfigError

    with pytest.raises(ConfigError, match=match):
        gpu_run.check_runnable(read_tiny(**changes))


def test_plain_runs_are_not_refused():
    import gpu_run

    gpu_run.check_runnable(read_tiny())
    gpu_run.check_runnable(read_tiny(adapter="qlora", load_in_4bit=True, lora_r=8, lora_target_modules=["q_proj"]))


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_loop_runs_on_real_tensors(monkeypatch, adapter):
    """Marks, placing and the optimizer of the real loop; CUDA's allocator is replaced by a counter."""
    import gpu_run

    from axmem_trace.training.optimizers import build_optimizer
    from axmem_trace.training.step import Run

    monkeypatch.setattr(gpu_run, "read_allocator", lambda: {"end_bytes": 1, "allocated_bytes": 2, "reserved_bytes": 3})
    monkeypatch.setattr(gpu_run.GpuRecorder, "_reset", lambda self: None)
    # All tokens are the same, so all values are, and scores change nothing: q_proj's gradient would be rounding noise.
    lora = {"adapter": "lora", "lora_r": 8, "lora_alpha": 8, "lora_target_modules": ["v_proj"]}
    recipe = read_tiny(**(lora if adapter == "lora" else {}))
    built = gpu_run.build_on_device(recipe, "cpu")
    assert not any(parameter.is_meta for parameter in built.module.parameters())
    before = {name: value.detach().clone() for name, value in built.module.named_parameters() if value.requires_grad}
    recorder = gpu_run.GpuRecorder("cpu")
    Run(recipe, built, build_optimizer(recipe, built.module), recorder, repeat=False).record()
    recorder.close()
    assert [(phase["phase"], phase["step"]) for phase in recorder.phases] == [
        (phase, step) for step in (1, 2) for phase in ("forward", "backward", "optimizer")
    ]
    after = dict(built.module.named_parameters())
    assert any(not before[name].equal(after[name]) for name in before)


def test_real_weights_are_those_of_the_estimate():
    """Names, shapes and dtypes are the same as on meta."""
    import gpu_run

    from axmem_trace.models import build_model

    recipe = read_tiny(adapter="lora", lora_r=8, lora_alpha=8, lora_target_modules=["q_proj"])
    real, meta = gpu_run.build_on_device(recipe, "cpu").module, build_model(recipe).module

    def layout(model):
        return {name: (value.shape, value.dtype, value.requires_grad) for name, value in model.named_parameters()}

    assert layout(real) == layout(meta)


def test_phases_become_quantities():
    import measure_on_gpu

    phases = [
        {"phase": phase, "step": step, "end_bytes": end, "allocated_bytes": peak, "reserved_bytes": 2 * peak}
        for phase, step, end, peak in (
            ("forward", 1, 30, 40), ("backward", 1, 25, 50), ("optimizer", 1, 20, 45), ("forward", 2, 30, 60),
            ("backward", 2, 25, 55), ("optimizer", 2, 21, 45),
        )
    ]  # fmt: skip
    found = measure_on_gpu.summarise_phases({"end_bytes": 10}, phases)
    assert found == {
        "after_load": 10, "after_forward": 30, "step_1": 50, "step_2": 60, "end": 21, "reserved": 120,
    }  # fmt: skip
    assert tuple(found) == measure_on_gpu.QUANTITIES
    assert measure_on_gpu.compare({**found, "end": 42}, found)["end"] == 1.0


def test_estimate_gives_the_same_quantities():
    import measure_on_gpu

    from axmem_trace import estimate

    found = measure_on_gpu.summarise_report(estimate(TINY, hub="never"))
    assert tuple(found) == measure_on_gpu.QUANTITIES
    assert found["after_load"] < found["after_forward"] <= found["step_1"] <= found["reserved"]


def test_peak_by_code():
    """a 100, b 50, a freed, c 70: the peak is 150, of a and b; torch's own frames are passed over."""
    import measure_on_gpu

    def entry(action, address, size, file):
        frames = [
            {"filename": "/site-packages/torch/nn/functional.py", "line": 1, "name": "linear"},
            {"filename": f"/site-packages/models/{file}.py", "line": 7, "name": "forward"},
        ]
        return {"action": action, "addr": address, "size": size, "frames": frames}

    trace = [
        entry("alloc", 1, 100, "a"), entry("alloc", 2, 50, "b"), entry("free_requested", 1, 100, "a"),
        entry("free_completed", 1, 100, "a"), entry("alloc", 3, 70, "c"),
    ]  # fmt: skip
    assert measure_on_gpu.find_peak_by_code({"device_traces": [trace]}) == [
        {"code": "models/a.py:7 forward", "bytes": 100},
        {"code": "models/b.py:7 forward", "bytes": 50},
    ]


def test_unknown_cards_go_by_their_size():
    import measure_on_gpu

    assert measure_on_gpu.name_of_card("NVIDIA A100-SXM4-80GB", 1) == "NVIDIA A100-SXM4-80GB"
    assert measure_on_gpu.name_of_card("NVIDIA Nonesuch 9000", 24 << 30) == "24.00GiB"


def test_scripts_import_without_torch():
    """Arguments and refusals of a wrong command line come at once."""
    import subprocess

    program = "import sys, measure_on_gpu, compare_published; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=SCRIPTS, check=False, timeout=60)
    assert done.returncode == 0
