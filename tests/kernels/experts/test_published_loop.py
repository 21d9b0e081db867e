"""transformers' eager loop over experts, compared with measurements of Liger's authors on an H100
(`loss_and_kernel_memory.json` in `shared/measured/`, kernel `fused_moe`, provider `huggingface`): only Qwen 3's
experts, in bf16.

Their routing is random and ours is balanced, so the tokens of each expert differ slightly.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.kernel_recording import PLAIN, gpu_recording, peak_bytes, site_of
from support.paths import SHARED
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from axmem_trace.kernels.experts.install import install_experts

MEASURED = SHARED / "measured" / "loss_and_kernel_memory.json"
MIB = 2**20
WIDTH, INNER, TOP_K = 2048, 768, 8
OUTSIDE = 64 * MIB
"""An H100's two cuBLAS workspaces."""


def measurements() -> list[tuple[str, int, int, float]]:
    """Mode, tokens, experts, MiB; only the end of the sweep over tokens."""
    if not MEASURED.exists():
        return []
    found = []
    for row in json.loads(MEASURED.read_text())["rows"]:
        if (row["kernel_name"], row["kernel_provider"]) != ("fused_moe", "huggingface"):
            continue
        value, mode = int(row["x_value"]), row["kernel_operation_mode"]
        tokens, experts = (value, 128) if row["x_name"] == "T" else (8192, value)
        if mode != "backward" and (row["x_name"] == "E" or value == 32768):
            found.append((mode, tokens, experts, float(row["y_value_50"])))
    return found


@pytest.mark.parametrize(("mode", "tokens", "num_experts", "measured"), measurements())
def test_the_eager_loop_needs_the_same_memory_as_on_a_gpu(
    mode: str, tokens: int, num_experts: int, measured: float
) -> None:
    # The benchmark also keeps the weights of Liger's experts (9 MiB each), its graph, and the gradients of the
    # iteration before. Forward keeps for each routed token: its row (4,096 bytes), gate and up (3,072), the activation
    # and the product (1,536 each), the output, and the output times its score (4,096 each): 18,432.
    allocations = run(tokens, num_experts, backward=mode == "full")
    peak = peak_bytes(allocations, in_blocks=True) + 9 * MIB * num_experts + OUTSIDE
    assert peak / MIB == pytest.approx(measured, rel=0.0015)


EAGER = replace(PLAIN, model=replace(PLAIN.model, experts_implementation="eager"))


def run(tokens: int, num_experts: int, *, backward: bool) -> Any:
    config = Qwen3MoeConfig(
        hidden_size=WIDTH, moe_intermediate_size=INNER, num_experts=num_experts, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = "eager"
    with torch.device("meta"):
        experts = Qwen3MoeExperts(config).to(torch.bfloat16)
        x = torch.empty(tokens, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        scores = torch.empty(tokens, num_experts)
        weights = torch.empty(tokens, TOP_K, dtype=torch.bfloat16, requires_grad=True)
    recording = gpu_recording(compute_capability=(9, 0))
    recorder = recording.recorder
    with site_of(recording, experts, EAGER) as site, recording:
        install_experts(site)
        for tensor in (*experts.parameters(), x, weights):
            recorder.register(tensor, role="input")
        index = torch.topk(scores, TOP_K, -1)[1]
        gradient = None
        for _ in range(2):
            recorder.mark("forward", 1)
            out = experts(x, index, weights)
            recorder.mark("backward", 1)
            if backward:
                gradient = torch.empty_like(out) if gradient is None else gradient
                torch.autograd.backward(out, gradient, retain_graph=True)
            del out
    return [each for each in recorder.make_ledger().on_gpu if each.op != "cuBLAS"]


def test_the_measurements_exist() -> None:
    if not MEASURED.exists():
        pytest.skip("no published measurements here")
    assert len(measurements()) == 12
