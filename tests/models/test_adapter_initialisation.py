"""The memory of peft's initialisations from the base weights while the model is loaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kernel_recording import gpu_recording, recording_on
from support.tiny_models import write_tiny_model
from support.whole_runs import load, make_recipe

from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.kernels.core.cusolver import gesvdj_elements
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.models.adapters import initialise

SOLVER = 4 * ((1024 * 256 + (1 << 19) + 3 * 32) + 32 * 48 + 128)
"""cuSOLVER's workspace for 32 x 48 (`kernels/core/cusolver.py`): that of a small QR decomposition, and a transposed copy."""
SVD, CAST, PRODUCT = "aten._linalg_svd.default", "aten._to_copy.default", "aten.mm.default"


def load_adapted(tmp_path: Path, **keys: Any) -> tuple[Ledger, Any]:
    """Loads a model with an adapter on one matrix of 32 x 48: the first layer's down projection."""
    lora = {
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_modules": ["down_proj"],
        "peft_layers_to_transform": [0],
    }
    return load(make_recipe(tmp_path, **{**lora, **keys}))


def sizes(ledger: Ledger, op: str) -> Counter[int]:
    return Counter(each.nbytes for each in ledger.allocations if each.op == op)


def difference(tmp_path: Path, op: str, **keys: Any) -> Counter[int]:
    """The allocations of one operator that the key adds."""
    return sizes(load_adapted(tmp_path, **keys)[0], op) - sizes(load_adapted(tmp_path)[0], op)


def test_pissa_decomposes_one_weight_at_a_time(tmp_path):
    keys = {"peft_init_lora_weights": "pissa"}
    # A copy of 32 x 48 x 4, U of 32 x 32 x 4, 32 singular values, Vh of 32 x 48 x 4, a status word, cuSOLVER's workspace.
    assert difference(tmp_path, SVD, **keys) == Counter({6144: 2, 4096: 1, 128: 1, 4: 1, SOLVER: 1})
    # In fp32; and without the adapter's part, again in bf16.
    assert difference(tmp_path, CAST, **keys) == Counter({6144: 1, 3072: 1})
    # sqrt(S) Uh, Vr sqrt(S), and their product.
    assert difference(tmp_path, PRODUCT, **keys) == Counter({4 * 48 * 4: 1, 32 * 4 * 4: 1, 6144: 1})


def test_the_peak_of_pissa_has_three_copies_and_both_factors():
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    recording = gpu_recording()
    recorder = recording.recorder
    with torch.device("meta"):
        base = torch.nn.Linear(1024, 512, bias=False, dtype=torch.bfloat16)
        with recording:
            Linear(base, "default", config=LoraConfig(init_lora_weights="pissa", r=8, lora_alpha=8), r=8, lora_alpha=8)
    workspace = next(each.nbytes for each in recorder.make_ledger().allocations if each.op == "cuBLAS")
    peak = recorder.make_ledger().peak().allocated_bytes - workspace
    # The weight, B A and their difference in fp32; U 512 x 512, Vh 512 x 1024 and 512 singular values.
    matrix = 512 * 1024 * 4
    held = 3 * matrix + 512 * 512 * 4 + matrix + 512 * 4
    assert peak == held + 8 * 1024 * 4 + 512 * 8 * 4, "and A and B themselves"


def test_olora_makes_no_copy_for_cusolver(tmp_path):
    """Q and R; 32 factors and a status word; the larger workspace, that of a small triangle, with 512 bytes for rounding."""
    found = difference(tmp_path, "aten.linalg_qr.default", peft_init_lora_weights="olora")
    assert found == Counter({32 * 32 * 4: 1, 32 * 48 * 4: 1, 128: 1, 4: 1, 4 * (1024 * 256 + (1 << 19)) + 512: 1})


def test_mica_trains_only_a(tmp_path):
    ledger, built = load_adapted(tmp_path, peft_init_lora_weights="mica")
    assert sizes(ledger, SVD) == Counter({6144: 2, 4096: 1, 128: 1, 4: 1, SOLVER: 1})
    assert [name for name, each in built.module.named_parameters() if each.requires_grad] == [
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight"
    ]


@pytest.mark.parametrize(
    "keys", [{"peft": {"loftq_config": {"loftq_bits": 4}}}, {"peft": {"loftq_config": {"loftq_bits": 8}}}]
)
def test_loftq_decomposes_the_quantisation_error(tmp_path, keys):
    assert difference(tmp_path, SVD, **keys) == Counter({6144: 2, 4096: 1, 128: 1, 4: 1, SOLVER: 1})
    assert difference(tmp_path, CAST, **keys) == Counter({6144: 1, 3072: 1})
    _, built = load_adapted(tmp_path, **keys)
    weight = built.module.get_parameter("base_model.model.model.layers.0.mlp.down_proj.base_layer.weight")
    assert weight.dtype is torch.bfloat16, "the base keeps the quantised weight's value, not its size"


def test_loftq_by_hand():
    recording = gpu_recording()
    recorder = recording.recorder
    weight = torch.empty(512, 1024, dtype=torch.bfloat16, device="meta")
    with recording:
        results = initialise._loftq(weight, 4, 8)
    assert [tuple(each.shape) for each in results] == [(512, 1024), (8, 1024), (512, 8)]
    matrix = 512 * 1024 * 4
    # While the residue is decomposed: fp32 weight, dequantised weight, residue, a copy, U, S, Vh, status and workspace;
    # the packed half bytes with a scale for each 64 of them, and the table of 16 code values.
    expected = 4 * matrix + 512 * 512 * 4 + matrix + 512 * 4 + 512 + 512 * 1024 // 2 + 512 * 1024 // 64 * 4
    ledger = recorder.make_ledger()
    solver = next(
        each for each in ledger.allocations if each.op == SVD and each.nbytes == 4 * gesvdj_elements(512, 1024)
    )
    assert ledger.allocated_at(solver.allocated_tick) == expected + solver.nbytes


@pytest.mark.parametrize("init", ["orthogonal", "eva", "lora_ga", "gaussian"])
def test_other_initialisations_need_no_memory_on_the_gpu(tmp_path, init):
    plain, _ = load_adapted(tmp_path)
    ledger, _ = load_adapted(tmp_path, peft_init_lora_weights=init)
    assert ledger.peak().allocated_bytes == plain.peak().allocated_bytes


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"adapter": "qlora", "load_in_4bit": True, "peft_init_lora_weights": "pissa"}, "are packed"),
        ({"load_in_8bit": True, "peft_init_lora_weights": "pissa_niter_4"}, "are packed"),
        ({"adapter": "qlora", "load_in_4bit": True, "peft": {"loftq_config": {"loftq_bits": 4}}}, "are packed"),
        ({"peft_init_lora_weights": "orthogonal", "lora_r": 3}, "even rank"),
        ({"peft_init_lora_weights": "corda"}, "peft refuses"),
        ({"peft_init_lora_weights": "loftq"}, "loftq_config"),
    ],
)
def test_what_stops_is_refused(tmp_path, keys, words):
    with pytest.raises(ConfigError, match=words):
        load_adapted(tmp_path, **keys)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_meta_runs_the_same_operators_as_peft_on_a_cpu(tmp_path, init):
    """The same operators with the same sizes, for weights with and without values."""
    found = []
    for device in ("cpu", "meta"):
        config = {
            "base_model": write_tiny_model("llama", tmp_path / "llama"),
            "micro_batch_size": 1,
            "learning_rate": 1e-4,
            "datasets": [{"path": "x", "type": "alpaca"}],
            "adapter": "lora",
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_target_linear": True,
            "peft_init_lora_weights": init,
        }
        recording = recording_on(device)
        build_model(read_recipe(config, hub="never"), device=device, watch=lambda model, opened=recording: opened)
        ledger = recording.recorder.make_ledger()
        made = [each for each in ledger.allocations if "linalg" in each.op or ".mm" in each.op]
        found.append(Counter((each.op, each.nbytes) for each in made))
    assert found[0] == found[1]
    assert found[0].total() >= 14 * 2
