"""`scripts/measure_on_gpu.py`: all parts that need no GPU, and the training loop on real tensors of the CPU."""

from __future__ import annotations

import sys

import pytest
from support.paths import SCRIPTS

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
    from axmem_trace.config import read_recipe

    assumptions = {"autocast": False, "upcast_before": False, "lora_kernels": False}
    return read_recipe({**TINY, **changes}, hub="never", assumptions=assumptions)


def test_it_refuses_a_machine_without_a_gpu(capsys, monkeypatch, tmp_path):
    import measure_on_gpu
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure_on_gpu.main([str(tmp_path / "config.yml")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "nothing can be measured" in output.err
    assert output.err.count("\n") == 1


def test_bad_arguments_are_reported(capsys):
    import measure_on_gpu

    with pytest.raises(SystemExit) as stop:
        measure_on_gpu.main(["config.yml", "--set", "no equals sign"])
    assert stop.value.code == 2
    assert "--set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optimizer": "muon"}, "optimizer"),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rms_norm": True}, "Liger"),
        ({"chunked_cross_entropy": True}, "loss"),
        ({"tiled_mlp": True}, "tiled_mlp"),
        ({"sample_packing": True}, "attention"),
    ],
)
def test_placeholders_are_refused(changes, match):
    import gpu_run

    from axmem_trace.errors import ConfigError

    with pytest.raises(ConfigError, match=match):
        gpu_run.check_runnable(read_tiny(**changes))


def test_kernels_that_are_not_installed_are_named(monkeypatch):
    """Without mamba-ssm transformers runs its own scan, with three times the memory. That would be no error of the
    estimate."""
    import gpu_run

    from axmem_trace.errors import ConfigError
    from axmem_trace.notes import Note

    note = Note(kind="ruled", key="mamba-ssm", text="state-space layers as mamba-ssm keeps memory")
    monkeypatch.setattr(gpu_run, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match="mamba-ssm, which is not installed"):
        gpu_run.check_kernels([note])
    monkeypatch.setattr(gpu_run, "find_spec", lambda package: package == "mamba_ssm" or None)
    gpu_run.check_kernels([note, Note(kind="traced", key="causal-conv1d", text="in torch")])


def test_plain_runs_are_not_refused():
    import gpu_run

    gpu_run.check_runnable(read_tiny())
    gpu_run.check_runnable(read_tiny(optimizer="paged_adamw_8bit"))
    gpu_run.check_runnable(read_tiny(adapter="qlora", load_in_4bit=True, lora_r=8, lora_target_modules=["q_proj"]))


LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]}
MOE = {
    "base_model": "Qwen/Qwen3-30B-A3B",
    "overrides_of_model_config": {
        "hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 320, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
    },
}  # fmt: skip
KINDS = {
    "full": {},
    "foreach": {"optimizer": "adamw_torch", "gradient_accumulation_steps": 2},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "tied": {"overrides_of_model_config": {**TINY["overrides_of_model_config"], "tie_word_embeddings": True}},
    "eager, packed": {"sample_packing": True, "sdp_attention": False, "attn_implementation": "eager"},
    "evaluated": {"val_set_size": 0.1, "eval_strategy": "steps", "eval_steps": 2},
    "lora": {**LORA, "lora_dropout": 0.1},
    "dora": {**LORA, "peft_use_dora": True},
    "qlora": {**LORA, "adapter": "qlora", "load_in_4bit": True, "gradient_checkpointing": True},
    "int8": {**LORA, "load_in_8bit": True},
    "moe": MOE,
}


@pytest.fixture
def on_cpu(monkeypatch):
    """CUDA's allocator is replaced by a counter, and its device by the CPU."""
    import gpu_run

    numbers = {"end_bytes": 1, "allocated_bytes": 2, "active_bytes": 2, "reserved_bytes": 3}
    monkeypatch.setattr(gpu_run, "read_allocator", lambda: dict(numbers))
    monkeypatch.setattr(gpu_run.GpuRecorder, "_reset", lambda self: None)
    return gpu_run


@pytest.mark.parametrize("kind", KINDS)
def test_loop_runs_on_real_tensors(on_cpu, kind):
    """The real loop marks its phases, moves the model to the device and steps the optimizer, which changes weights."""
    recipe = read_tiny(**KINDS[kind])
    on_cpu.check_runnable(recipe)
    run = on_cpu.make_run(recipe, "cpu")
    assert not any(tensor.is_meta for tensor in (*run.model.parameters(), *run.model.buffers()))
    before = {name: value.detach().clone() for name, value in run.model.named_parameters() if value.requires_grad}
    run.record()
    run.recorder.close()
    passes = ["forward", "backward"] * recipe.batch.gradient_accumulation_steps
    steps = [(phase, step) for step in (1, 2) for phase in (*passes, "optimizer")]
    expected = [("eval", 0), *steps] if kind == "evaluated" else steps
    assert [(phase["phase"], phase["step"]) for phase in run.recorder.phases] == expected
    after = dict(run.model.named_parameters())
    assert any(not before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_real_weights_equal_those_of_the_estimate(on_cpu, kind):
    """Names, shapes, dtypes and ties of all parameters, buffers and quantisation states are the same as on meta."""
    from axmem_trace.models import build_model
    from axmem_trace.models.quantisation import iterate_bnb_states

    recipe = read_tiny(**KINDS[kind])
    real, meta = on_cpu.build_on_device(recipe, "cpu").module, build_model(recipe).module

    def layout(model):
        found = {
            name: (value.shape, value.dtype, value.requires_grad, type(value).__name__)
            for name, value in model.named_parameters()
        }
        found |= {name: (value.shape, value.dtype) for name, value in model.named_buffers()}
        for prefix, module in model.named_modules():
            states = iterate_bnb_states(prefix, module)
            found |= {state.name: (state.tensor.shape, state.tensor.dtype) for state in states}
        return found

    assert layout(real) == layout(meta)


def test_buffers_have_the_values_of_the_model(on_cpu):
    """Rotary frequencies are 10000^(-2i/16), i = 0 … 7. The weights of norms are one."""
    import torch

    module = on_cpu.build_on_device(read_tiny(), "cpu").module
    expected = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    assert torch.allclose(module.model.rotary_emb.inv_freq.float(), expected, rtol=1e-2)
    assert (module.model.norm.weight == 1).all()


def test_fp16_is_scaled_by_the_real_scaler(on_cpu):
    """`RealScaler` on the CPU: the loss is scaled by 65536, gradients are unscaled in place, and `update` prepares the
    next step."""
    import torch

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = on_cpu.RealScaler(type("One", (), {"optimizers": [optimizer]})(), "cpu")
    for _ in range(2):
        scaler.scale(weight.sum()).backward()
        assert weight.grad[0] == 65536.0
        scaler.unscale([weight])
        assert weight.grad[0] == 1.0
        scaler.update()
        weight.grad = None


def test_phases_become_quantities():
    """With two micro-batches the estimate gives the end of the last forward. Evaluation comes last and belongs to
    neither step."""
    import gpu_figures

    def phase(name, step, end, peak, micro_batch=0):
        return {
            "phase": name,
            "step": step,
            "micro_batch": micro_batch,
            "end_bytes": end,
            "allocated_bytes": peak,
            "reserved_bytes": 2 * peak,
        }

    phases = [
        phase("forward", 1, 30, 40),
        phase("backward", 1, 25, 50),
        phase("forward", 1, 33, 45, 1),
        phase("backward", 1, 25, 50, 1),
        phase("optimizer", 1, 20, 45),
        phase("forward", 2, 30, 60),
        phase("backward", 2, 25, 55),
        phase("optimizer", 2, 21, 45),
        phase("eval", 0, 19, 62),
    ]
    found = gpu_figures.summarise_phases({"end_bytes": 10, "reserved_bytes": 30}, phases)
    assert found == {
        "after_load": 10,
        "after_forward": 33,
        "step_1": 50,
        "step_2": 60,
        "end": 21,
        "reserved": 124,
    }
    assert tuple(found) == gpu_figures.QUANTITIES
    assert gpu_figures.compare({**found, "end": 42}, found)["end"] == 1.0


def test_the_estimate_has_the_same_quantities():
    import gpu_figures

    from axmem_trace import estimate

    found = gpu_figures.summarise_report(estimate(TINY, hub="never"))
    assert tuple(found) == gpu_figures.QUANTITIES
    assert found["after_load"] < found["after_forward"] <= found["step_1"] <= found["reserved"]


def test_peak_by_code():
    """a 100, b 50, a freed, c 70: the peak is 150, of a and b. torch's own frames are skipped."""
    import gpu_figures

    def entry(action, address, size, file):
        frames = [
            {"filename": "/site-packages/torch/nn/functional.py", "line": 1, "name": "linear"},
            {"filename": f"/site-packages/models/{file}.py", "line": 7, "name": "forward"},
        ]
        return {"action": action, "addr": address, "size": size, "frames": frames}

    trace = [
        entry("alloc", 1, 100, "a"),
        entry("alloc", 2, 50, "b"),
        entry("free_requested", 1, 100, "a"),
        entry("free_completed", 1, 100, "a"),
        entry("alloc", 3, 70, "c"),
    ]
    assert gpu_figures.find_peak_by_code({"device_traces": [trace]}) == [
        {"code": "models/a.py:7 forward", "bytes": 100},
        {"code": "models/b.py:7 forward", "bytes": 50},
    ]


def test_unknown_cards_count_as_similar_ones():
    """The generation decides which kernels run, so it is compared before the size."""
    import measure_on_gpu

    gib = 1 << 30
    assert measure_on_gpu.name_of_card("NVIDIA A100-SXM4-80GB", 1, (8, 0)) == "NVIDIA A100-SXM4-80GB"
    assert measure_on_gpu.name_of_card("NVIDIA H100 Nonesuch", 79 * gib, (9, 0)) == "H100-80GB"
    slice_name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert measure_on_gpu.name_of_card(slice_name, 10 * gib, (9, 0)) == slice_name
    assert measure_on_gpu.name_of_card("NVIDIA Nonesuch 9000", 24 * gib, (13, 0)) == "24.00GiB"


def test_a_run_that_fails_does_not_stop_the_others(monkeypatch, capsys, tmp_path):
    import measure_on_gpu

    codes = {"full-fused": 0, "lora": 1, "moe": 0}
    ran = []

    def run_apart(job, parsed):
        ran.append((job.name, job.output, job.config.exists(), tuple(job.assumptions)))
        return codes[job.name]

    monkeypatch.setattr(measure_on_gpu, "find_refusal", lambda: "")
    monkeypatch.setattr(measure_on_gpu, "run_apart", run_apart)
    assert measure_on_gpu.main(["--recipes", "full-fused,lora,moe", "-o", str(tmp_path / "out")]) == 1
    assert ran == [
        ("full-fused", tmp_path / "out/full-fused.json", True, ()),
        ("lora", tmp_path / "out/lora.json", True, ("lora_kernels=false",)),
        ("moe", tmp_path / "out/moe.json", True, ()),
    ]
    assert "2 of 3 measured; not: lora" in capsys.readouterr().err


def test_each_run_has_a_process_with_its_own_allocator(monkeypatch, tmp_path):
    """A card's process inherits the settings of the recipe's allocator, under the name that PyTorch reads since 2.9. It
    inherits no setting of workspaces. It gets the recipe's name and all options."""
    import argparse
    import os
    import subprocess

    import measure_on_gpu

    commands = []
    done = argparse.Namespace(returncode=3)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: (commands.append(command), done)[1])
    parsed = measure_on_gpu.build_parser().parse_args(["a.yml", "--set", "x=1", "--assume", "y=2", "--history"])
    job = measure_on_gpu.Job("a", tmp_path / "a.yml", ("z=3",), tmp_path / "a.json")
    assert measure_on_gpu.run_apart(job, parsed) == 3
    assert commands[0][2:] == [
        str(tmp_path / "a.yml"),
        "--in-this-process",
        "--set",
        "x=1",
        "--assume",
        "z=3",
        "--assume",
        "y=2",
        "-o",
        str(tmp_path / "a.json"),
        "--history",
    ]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.delenv("FAKE_CUDA_BYTE", raising=False)
    measure_on_gpu.prepare_environment("expandable_segments:True", has_zeros=False)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert not {"PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG"} & os.environ.keys()
    assert os.environ["FAKE_CUDA_BYTE"] == "1"
    measure_on_gpu.prepare_environment("", has_zeros=True)
    assert os.environ["FAKE_CUDA_BYTE"] == "1"  # a variable that the caller has set is kept


@pytest.mark.parametrize("arguments", [[], ["--recipes", "nonesuch"]])
def test_nothing_to_run_is_reported(monkeypatch, capsys, arguments):
    import measure_on_gpu

    monkeypatch.setattr(measure_on_gpu, "find_refusal", lambda: "")
    assert measure_on_gpu.main(arguments) == 2
    assert "full-fused" in capsys.readouterr().err


def test_all_recipes_can_be_run(tmp_path, monkeypatch):
    """Each is read and accepted. None needs the Hub, or a kernel that is only imitated."""
    import gpu_run
    from gpu_recipes import RECIPES, write_recipe

    from axmem_trace.config import read_recipe

    for name, ready in RECIPES.items():
        path = write_recipe(name, tmp_path)
        monkeypatch.setenv("FAKE_RANKS", str(ready.ranks))
        recipe = read_recipe(
            str(path),
            assumptions=ready.assumptions,
            hub="never",
            gpu="H100",
            num_gpus=ready.ranks or 1,
            axolotl=ready.axolotl,
        )
        gpu_run.check_runnable(recipe)


def test_scripts_import_without_torch():
    """A wrong command line is refused at once, without importing torch."""
    import subprocess

    program = "import sys, measure_on_gpu, compare_published; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=SCRIPTS, check=False, timeout=60)
    assert done.returncode == 0
