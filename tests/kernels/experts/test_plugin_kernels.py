"""ScatterMoE and SonicMoE, by hand and in whole models.

The Python code of axolotl 0.19 and of sonic-moe 0.1.2 itself allocates the same bytes on meta, with kernels that do
nothing. There are 64 tokens of width 32 and two of 8 experts for each, so 128 routed rows; the inner width is 24,
adapters have rank 4; bf16.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.kernel_lifetimes import Lives, live
from support.moe_models import MOE

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.kernels.experts import routing as routing_module
from axmem_trace.kernels.experts import scattermoe
from axmem_trace.kernels.experts.scattered import Routed
from axmem_trace.kernels.experts.scattermoe import run_scattermoe
from axmem_trace.kernels.experts.scattermoe_lora import Adapter, ScatterMoELoRA, by_expert
from axmem_trace.kernels.experts.sonicmoe import run_sonicmoe
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import record_run

TOKENS, WIDTH, INNER, EXPERTS, TOP_K, RANK = 64, 32, 24, 8, 2, 4
ROUTED = TOKENS * TOP_K
WEIGHTS = EXPERTS * 2 * INNER * WIDTH * 2, EXPERTS * WIDTH * INNER * 2  # bytes of gate-up and down: 24,576 and 12,288
PLUGIN = "axolotl.integrations.kernels.KernelsPlugin"


def tensor(*size: int, dtype: torch.dtype = torch.bfloat16, trains: bool = True) -> torch.Tensor:
    return torch.empty(*size, dtype=dtype, device="meta", requires_grad=trains and dtype.is_floating_point)


def known_routing(index: torch.Tensor, num_experts: int) -> Routed:
    """Replaces the counting of tokens, which meta can't do without a rule."""
    rows = index.numel()
    return Routed(*(torch.empty(size, dtype=torch.int64, device="meta") for size in (rows, rows, num_experts)))


def run_layer(run: Any, *, lora: bool, trains: bool = False, dtype: torch.dtype = torch.bfloat16) -> Lives:
    gate_up = tensor(EXPERTS, 2 * INNER, WIDTH, dtype=dtype, trains=trains)
    down = tensor(EXPERTS, WIDTH, INNER, dtype=dtype, trains=trains)
    rows = RANK * EXPERTS
    adapters = {
        "gate_up_proj": Adapter(tensor(rows, WIDTH), tensor(2 * INNER, rows), 2.0),
        "down_proj": Adapter(tensor(rows, INNER), tensor(WIDTH, rows), 2.0),
    }
    module = SimpleNamespace(
        is_transposed=False,
        is_concatenated=True,
        has_bias=False,
        has_gate=True,
        num_experts=EXPERTS,
        gate_up_proj=gate_up,
        down_proj=down,
        act_fn=torch.nn.functional.silu,
        config=SimpleNamespace(hidden_act="silu"),
        handed_adapters=adapters if lora else None,
    )
    index = tensor(TOKENS, TOP_K, dtype=torch.int64)
    return live([tensor(TOKENS, WIDTH), tensor(TOKENS, TOP_K)], lambda x, scores: run(module, x, index, scores))


@pytest.fixture(autouse=True)
def _counts_are_known(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "tmp_path" not in request.fixturenames:
        monkeypatch.setattr(scattermoe, "sort_by_expert", known_routing)


# For ROUTED rows: gate-up 128 x 48 (12,288), silu's result and the product 128 x 24 (6,144 each), the rows before the
# sum 128 x 32 (8,192); the sum 64 x 32 (4,096); two int64 numbers for each row (1,024 each), and the ends of 8 experts
# (64).
SCATTERED = 12_288 + 2 * 6_144 + 8_192 + 4_096 + 2 * 1_024 + 64
INPUTS = TOKENS * WIDTH * 2 + ROUTED * 2  # gradients of tokens and scores
ADAPTERS = 2 * RANK * EXPERTS * (WIDTH + 2 * INNER + INNER + WIDTH)


class TestScatterMoE:
    def test_no_copy_of_weights_or_tokens_is_kept(self) -> None:
        found = run_layer(run_scattermoe, lora=False)
        assert (found.kept, found.after) == (SCATTERED, INPUTS)

    def test_frozen_weights_get_gradients_that_are_not_used(self) -> None:
        frozen, trained = (run_layer(run_scattermoe, lora=False, trains=trains) for trains in (False, True))
        assert frozen.kept == trained.kept
        assert trained.after == INPUTS + sum(WEIGHTS)
        # The gradient of the down projection is freed before that of gate-up is made, unless it is trained.
        assert trained.backward - frozen.backward <= WEIGHTS[1]
        assert frozen.backward > SCATTERED - 4_096 + WEIGHTS[1]

    def test_adapters_of_the_experts_are_not_merged(self) -> None:
        merged_nothing = run_layer(run_scattermoe, lora=True)
        assert merged_nothing.kept == SCATTERED
        assert merged_nothing.after == INPUTS + ADAPTERS

    def test_weights_of_another_dtype_are_kept_as_a_copy(self) -> None:
        found = run_layer(run_scattermoe, lora=True, dtype=torch.float32)
        assert found.kept == SCATTERED + sum(WEIGHTS)

    @pytest.mark.parametrize(("experts", "inner", "split"), [(8, 8_192, True), (8, 4_096, False), (64, 8_192, False)])
    def test_few_large_experts_use_three_products(self, experts: int, inner: int, split: bool) -> None:
        # 8 experts of 4,096 x 8,192 weights: more than 20 million each
        width, rows, rank = 4_096, 16, 4
        x, weight = tensor(rows, width), tensor(experts, width, inner, trains=False)
        lora_a, lora_b = tensor(rank * experts, width), tensor(inner, rank * experts)
        routed = known_routing(tensor(rows, 1, dtype=torch.int64), experts)
        found = live(
            [x, lora_a, lora_b],
            lambda x, a, b: ScatterMoELoRA.apply(x, weight, 1, routed, a, b, 2.0, None, None, False, None),
        )
        output = rows * inner * 2
        # A and B reordered by expert, x times A, this times B, and the output
        more = (rank * experts * (width + inner) + rows * rank + rows * inner) * 2 if split else 0
        assert found.forward == output + more

    def test_b_is_reordered_by_expert(self) -> None:
        lora_a, lora_b = tensor(RANK * EXPERTS, WIDTH), tensor(INNER, RANK * EXPERTS)
        adapter = by_expert(lora_a, lora_b, 2.0, EXPERTS)
        assert adapter.lora_a is lora_a
        assert adapter.lora_b.shape == lora_b.shape
        assert adapter.lora_b.untyped_storage()._cdata != lora_b.untyped_storage()._cdata


class TestSonicMoE:
    # gate-up before the activation 12,288 and the output 4,096; in int32: 8 + 1 starts of experts, 64 + 1 starts of
    # tokens, and three numbers for each row; the scores of the rows in fp32
    KEPT = 12_288 + 4_096 + 4 * (9 + 65 + 3 * ROUTED) + ROUTED * 4

    def test_one_tensor_of_the_rows_is_kept(self) -> None:
        assert run_layer(run_sonicmoe, lora=False).kept == self.KEPT

    def test_adapters_are_merged_into_a_copy_of_all_weights(self) -> None:
        found = run_layer(run_sonicmoe, lora=True)
        assert found.kept == self.KEPT + sum(WEIGHTS)
        assert found.after == INPUTS + ADAPTERS

    def test_other_activations_are_refused(self, tmp_path: Path) -> None:
        config = {**MOE["qwen3_moe"], "hidden_act": "relu"}
        with pytest.raises(ConfigError, match="sonicmoe supports gated experts with silu"):
            estimate(tmp_path, config, use_sonicmoe=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("kernel", ["scattermoe", "sonicmoe"])
def test_a_model_runs_them(family: str, kernel: str, tmp_path: Path) -> None:
    report = estimate(tmp_path, MOE[family], **{f"use_{kernel}": True})
    texts = [note.text for note in report.notes if note.key == "experts_implementation"]
    assert len(texts) == 1
    assert f"experts run as {kernel}" in texts[0]


def test_sonicmoe_is_refused_before_hopper(tmp_path: Path) -> None:
    for gpu, reported in (("A100", True), ("H100", False)):
        report = estimate(tmp_path, MOE["qwen3_moe"], gpu=gpu, use_sonicmoe=True)
        assert any("before Hopper" in refusal.reason for refusal in report.refusals) is reported


def test_experts_outside_the_interface_run_their_own_code(tmp_path: Path) -> None:
    report = estimate(tmp_path, MOE["llama4"], use_scattermoe=True)
    assert any("do not use transformers' interface" in note.text for note in report.notes)


@pytest.mark.parametrize(("kernel", "merged"), [("scattermoe", 0), ("sonicmoe", 2), ("", 2)])
def test_the_kernels_that_keep_merged_weights(kernel: str, merged: int, tmp_path: Path) -> None:
    """A merged gate-up of 4 experts has 4 x 48 x 32 bf16 values. Both layers have one, or none."""
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    keys = {f"use_{kernel}": True} if kernel else {"experts_implementation": "grouped_mm"}
    ledger = record(
        tmp_path,
        MOE["qwen3_moe"],
        **keys,
        adapter="lora",
        lora_r=4,
        lora_alpha=8,
        lora_target_modules=["q_proj"],
        lora_target_parameters=parameters,
    )
    copies = [each for each in ledger.allocations if each.nbytes == 4 * 48 * 32 * 2 and each.kept and each.step == 1]
    assert len(copies) == merged


@pytest.mark.parametrize("followed", [True, False])
def test_packed_experts_are_unpacked_again_in_backward(
    followed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 experts of 48 x 64 values, of which two are used in the worst case; also if the routing is too large to
    follow."""
    monkeypatch.setattr(routing_module, "MAX_ONE_HOT", 1 << 30 if followed else 0)
    config = {**MOE["qwen3_moe"], "hidden_size": 64, "head_dim": 16}
    for router, active in (("balanced", 4), ("worst", 2)):
        ledger = record(
            tmp_path,
            config,
            router=router,
            use_scattermoe=True,
            adapter="qlora",
            load_in_4bit=True,
            quantize_moe_experts=True,
            lora_r=4,
            lora_alpha=8,
            lora_target_modules=["q_proj"],
            lora_target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        )
        unpacked = [
            each
            for each in ledger.allocations
            if each.nbytes == active * 48 * 64 * 2 and each.step == 1 and each.op == "aten.empty.memory_format"
        ]
        assert {each.phase for each in unpacked} == {"forward", "backward"}
        assert not any(each.kept for each in unpacked)


def make_config(directory: Path, model: dict[str, Any], **keys: Any) -> dict[str, Any]:
    (directory / "config.json").write_text(json.dumps(model))
    return {
        "base_model": str(directory),
        "sequence_len": 192,
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
        "bf16": True,
        "optimizer": "adamw_torch",
        "attn_implementation": "eager",
        "plugins": [PLUGIN],
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }


def estimate(directory: Path, model: dict[str, Any], *, gpu: str = "", **keys: Any) -> axmem_trace.Report:
    return axmem_trace.estimate(make_config(directory, model, **keys), hub="never", gpu=gpu)


def record(directory: Path, model: dict[str, Any], *, router: str = "balanced", **keys: Any) -> Ledger:
    """The ledger of a run without upcasts, so that the tokens are bf16 like the weights."""
    recipe = read_recipe(
        make_config(directory, model, **keys), hub="never", assumptions=["autocast=false", f"router={router}"]
    )
    recipe = replace(recipe, precision=replace(recipe.precision, upcast_before=False))
    built = build_model(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module)).ledger
