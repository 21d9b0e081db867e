"""The fixed routing, and the results that follow from it without values of masks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kernel_recording import gpu_recording
from support.moe_models import MOE

from axmem_trace.config import read_recipe
from axmem_trace.kernels.experts import routing as routing_module
from axmem_trace.kernels.experts.routing import Assignment, Routing, find_tables
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import record_run


@pytest.mark.parametrize("router", ["balanced", "worst"])
@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), [(10, 2, 4), (7, 3, 5), (3, 1, 8), (1, 2, 8)])
def test_counts_equal_the_counts_of_the_indices(tokens: int, top_k: int, num_experts: int, router: Any) -> None:
    assignment = Assignment(tokens, top_k, num_experts, router)
    indices = assignment.indices()
    counts = torch.bincount(indices.flatten(), minlength=num_experts).tolist()
    assert [assignment.tokens_of(expert) for expert in range(num_experts)] == counts
    assert sum(count > 0 for count in counts) == assignment.used_experts()
    assert all(len(set(row)) == top_k for row in indices.tolist())  # a token uses an expert only once


def test_balanced_is_even_and_worst_is_not() -> None:
    # 10 tokens x 2 = 20 choices among 4 experts: 5 each; in the worst case two experts get all 10 tokens
    assert [Assignment(10, 2, 4).tokens_of(expert) for expert in range(4)] == [5, 5, 5, 5]
    assert [Assignment(10, 2, 4, "worst").tokens_of(expert) for expert in range(4)] == [10, 10, 0, 0]


@pytest.mark.parametrize(("columns", "known"), [(4, True), (5, False)])
def test_only_a_choice_among_experts_is_decided(columns: int, known: bool) -> None:
    recording = gpu_recording()
    recorder = recording.recorder
    Routing([4]).attach(recording)
    with recording:
        index = torch.topk(torch.empty(6, columns, device="meta"), 2).indices
        assert (recorder.known(index) is not None) is known


def test_gates_of_many_tokens_are_followed() -> None:
    """modeling_jetmoe.py `JetMoeTopKGating.forward` counts tokens in half-precision gates of [tokens, experts]."""
    recording = gpu_recording()
    Routing([8]).attach(recording)
    with recording:
        index = torch.topk(torch.empty(2048, 8, device="meta"), 2).indices
        gates = torch.zeros(2048, 8, dtype=torch.bfloat16, device="meta").scatter(1, index, 1)
        assert gates.long().sum(0).tolist() == [512] * 8  # 2048 tokens x 2 / 8


def test_a_table_from_token_ids_to_experts_is_decided_when_it_is_read() -> None:
    """DeepSeek V4's first layers read experts from a table: modeling_deepseek_v4.py `DeepseekV4HashRouter.forward`."""
    router = torch.nn.Module()
    router.num_experts = 4
    router.register_buffer("tid2eid", torch.empty(100, 2, dtype=torch.int64, device="meta"))
    recording = gpu_recording()
    recorder = recording.recorder
    Routing([4], tables=find_tables(router)).attach(recording)
    with recording:
        experts = router.tid2eid[torch.empty(6, dtype=torch.int64, device="meta")]
        other = torch.empty(100, 2, dtype=torch.int64, device="meta")[:6]
        assert torch.equal(recorder.known(experts), Assignment(6, 2, 4).indices())
        assert recorder.known(other) is None


@pytest.mark.parametrize("router", ["balanced", "worst"])
@pytest.mark.parametrize("family", ["mixtral", "dbrx"])
def test_masks_too_large_to_follow_give_the_same_result(
    family: str, router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing_module, "MAX_ONE_HOT", 1 << 30)
    followed = lives_of(family, tmp_path, router)
    monkeypatch.setattr(routing_module, "MAX_ONE_HOT", 0)
    assert lives_of(family, tmp_path, router) == followed


def test_worst_routing_gives_one_expert_all_tokens(tmp_path: Path) -> None:
    """512 tokens, 2 of 4 experts: 256 tokens for each expert if balanced; in the worst case two experts have 512.

    A row is 32 hidden states in fp32, because norms with fp32 weights (axolotl upcasts them) return fp32.
    """
    balanced, worst = (gathered_rows(lives_of("mixtral", tmp_path, router)) for router in ("balanced", "worst"))
    assert (balanced, worst) == ({256 * 32 * 4}, {512 * 32 * 4})


def gathered_rows(lives: Counter[Any]) -> set[int]:
    """Sizes of the rows that experts gather from the hidden states in the forward pass."""
    return {
        nbytes
        for nbytes, phase, module, op in lives
        if phase == "forward" and module.endswith("experts") and op == "aten.index.Tensor" and nbytes > 512 * 4
    }  # 512 fp32 routing weights are gathered too


def lives_of(family: str, directory: Path, router: str) -> Counter[Any]:
    """Counts of all allocations of a run with the eager loop, by bytes, phase, module and operator."""
    (directory / "config.json").write_text(json.dumps(MOE[family]))
    config = make_config(directory, experts_implementation="eager")
    recipe = read_recipe(config, hub="never", assumptions=[f"router={router}"])
    built = build_model(recipe)
    recording = record_run(recipe, built, build_optimizer(recipe, built.module))
    assert any(note.key == "router" and note.kind == "assumed" for note in recording.notes)
    return Counter((each.nbytes, each.phase, each.module, each.op) for each in recording.ledger.allocations)


def make_config(directory: Path, **keys: Any) -> dict[str, Any]:
    return {
        "base_model": str(directory),
        "sequence_len": 256,
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
        "bf16": True,
        "optimizer": "adamw_torch",
        "attn_implementation": "sdpa",
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }


# -- grouped products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trains_weights", [True, False])
def test_grouped_products_have_the_layouts_of_a_cpu(dtype: torch.dtype, trains_weights: bool) -> None:
    """Forward, and the gradients of both operands. A CPU makes its outputs with the same function as CUDA."""
    recording = gpu_recording()
    with recording:
        on_meta = products("meta", dtype, trains_weights)
    assert on_meta == products("cpu", dtype, trains_weights)
    assert on_meta[0] == ((6, 24), (24, 1), dtype)


def products(device: str, dtype: torch.dtype, trains_weights: bool) -> list[Any]:
    x = torch.zeros(6, 16, dtype=dtype, device=device, requires_grad=True)
    weights = torch.zeros(2, 16, 24, dtype=dtype, device=device, requires_grad=trains_weights)
    offsets = (
        torch.tensor([2, 6], dtype=torch.int32) if device == "cpu" else torch.empty(2, dtype=torch.int32, device="meta")
    )
    out = torch.nn.functional.grouped_mm(x, weights, offs=offsets)
    out.backward(torch.zeros(6, 24, dtype=dtype, device=device))
    grads = [each.grad for each in (x, weights) if each.grad is not None]
    return [(tuple(each.shape), each.stride(), each.dtype) for each in (out, *grads)]


def test_sizes_that_cuda_refuses_are_refused() -> None:
    with gpu_recording(), pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        torch._grouped_mm(
            torch.empty(6, 10, device="meta", dtype=torch.bfloat16),
            torch.empty(2, 10, 24, device="meta", dtype=torch.bfloat16),
            offs=torch.empty(2, device="meta", dtype=torch.int32),
        )


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        # 60 bytes for each of 8 experts; H100: 132 multiprocessors with 4 descriptors of 128 bytes
        ((9, 0), torch.bfloat16, [480, 67_584]),
        # B200: 148 multiprocessors with 5,888 bytes
        ((10, 0), torch.bfloat16, [480, 871_424]),
        ((8, 0), torch.bfloat16, []),
        ((12, 0), torch.bfloat16, []),
        ((9, 0), torch.float32, []),
    ],
)
def test_scratch_of_grouped_products(capability, dtype, expected) -> None:
    """The blocks that torch 2.14.1's CUDA build allocates besides the output, without a GPU."""
    recording = gpu_recording(compute_capability=capability)
    rows, weights = (torch.empty(*shape, device="meta", dtype=dtype) for shape in ((4096, 512), (8, 512, 256)))
    with recording:
        torch._grouped_mm(rows, weights, offs=torch.empty(8, device="meta", dtype=torch.int32))
    made = [each.nbytes for each in recording.recorder.make_ledger().allocations if "_grouped_mm" in each.op]
    assert made == [4096 * 256 * dtype.itemsize, *expected]
