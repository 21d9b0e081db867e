"""The memory of a rank and of its host while a sharded model is loaded, compared with arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rank_configs import make_rank_config

from axmem_trace import estimate
from axmem_trace.config import read_recipe
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.render.tables import ranks_table
from axmem_trace.report import Report
from axmem_trace.training.layer_folding import trace_run

# the tiny llama: vocabulary 96, hidden 32, MLP 48, 2 layers. A layer's linears: q and o 32 x 32, k and v 16 x 32, gate, up
# and down 48 x 32: 7,680 weights, packed 3,840 bytes
PACKED = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32) // 2
# embedding and head 96 x 32, five norms of 32
REST = 2 * 96 * 32 + 5 * 32
QLORA = {"adapter": "qlora", "load_in_4bit": True, "lora_r": 8, "lora_alpha": 8, "lora_target_linear": True}
# A and B of each linear, 8 x (in + out), fp32
ADAPTERS = 4 * 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
# without `embeddings_skip_upcast` QLoRA's embedding, head and norms are fp32
WHOLE_ON_HOST = PACKED + 4 * REST + ADAPTERS


def report_of(tmp_path: Path, gpus: int, *, nodes: int = 1, options: dict[str, Any], **keys: Any) -> Report:
    config = make_rank_config(tmp_path, fsdp_version=2, fsdp_config=options, **keys)
    return estimate(config, num_gpus=gpus, num_nodes=nodes, hub="never")


def test_no_rank_keeps_all_packed_weights(tmp_path: Path) -> None:
    """Each parameter is sharded, with any kind of loading; packed weights are freed like the others."""
    options: tuple[dict[str, Any], ...] = ({}, {"cpu_ram_efficient_loading": True})
    ends = {
        (gpus, len(each)): report_of(tmp_path, gpus, options=each, **QLORA).phases["load"].end_bytes
        for gpus in (2, 8)
        for each in options
    }
    for way in (0, 1):
        # 1/2 - 1/8 of what is divided, except for blocks of 512 bytes
        assert ends[2, way] - ends[8, way] == pytest.approx(WHOLE_ON_HOST * 3 // 8, abs=512 * 30)
    assert ends[8, 0] == ends[8, 1]


def test_staged_weights_are_sent_one_at_a_time(tmp_path: Path) -> None:
    staged = report_of(tmp_path, 8, options={"cpu_ram_efficient_loading": True}, save_strategy="no", **QLORA)
    whole = report_of(tmp_path, 8, options={}, **QLORA)
    assert staged.phases["load"].allocated_bytes < whole.phases["load"].allocated_bytes
    # rank 0 has all weights on the host, the other ranks have only their shards, on the GPU
    first, others = staged.ranks
    assert (first.ranks, others.ranks) == ("0", "1-7")
    assert WHOLE_ON_HOST <= first.host_bytes <= WHOLE_ON_HOST + 512
    assert others.host_bytes < 512


def test_fused_kernels_keep_full_staged_weights_until_backward(tmp_path: Path) -> None:
    """The bf16 weights of all linear layers in both decoder layers: the kernels keep them where checkpointing cannot
    drop them, unless it runs the forward without a graph. Without the kernels, none are kept."""

    def kept(kernels: bool, efficient: bool, **more: Any) -> int:
        keys = {**QLORA, "lora_qkv_kernel": kernels, "lora_o_kernel": kernels, "lora_mlp_kernel": kernels, **more}
        report = report_of(tmp_path, 4, options={"cpu_ram_efficient_loading": efficient}, **keys)
        assert any("staged" in note.text and note.kind == "warning" for note in report.notes) is (kernels and efficient)
        return report.phases["step_1"].phases["forward"].end_bytes

    def checkpointed(reentrant: bool) -> dict[str, Any]:
        return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}

    assert kept(True, True) - kept(True, False) == 4 * PACKED
    assert kept(True, True, **checkpointed(False)) - kept(True, False, **checkpointed(False)) == 4 * PACKED
    assert kept(True, True, **checkpointed(True)) == kept(True, False, **checkpointed(True))
    assert kept(False, True) <= kept(False, False)


def fsdp1_recipe(tmp_path: Path, *, assumed: dict[str, Any], options: dict[str, Any], **keys: Any) -> Recipe:
    """A recipe of axolotl 0.19, the last release with FSDP1, on two GPUs."""
    config = make_rank_config(tmp_path, fsdp_version=1, fsdp_config=options, **keys)
    return read_recipe(config, num_gpus=2, hub="never", axolotl="0.19.0", assumptions=assumed)


def test_packed_weights_of_fsdp1_may_be_kept_on_the_host(tmp_path: Path) -> None:
    """transformers 4.48 packs each weight on the GPU and moves it to the host, without its scales. Nothing else is on
    the GPU before the units are made. Otherwise the whole model is on the GPU."""
    qlora = {**QLORA, "lora_qkv_kernel": False, "lora_o_kernel": False, "lora_mlp_kernel": False}
    live = []
    for on_host in (True, False):
        recipe = fsdp1_recipe(tmp_path, assumed={"fsdp_loads_on_host": on_host}, options={}, **qlora)
        ledger = trace_run(recipe).ledger
        _, divided = [mark.tick for mark in ledger.marks if mark.phase == "load"][:2]
        live.append(sum(each.nbytes for each in ledger.allocations if each.allocated_tick < divided <= each.freed_tick))
    # the packed weights, and in bf16 embedding, head and norms, with adapters in fp32
    assert live[1] - live[0] == pytest.approx(PACKED + 2 * REST + ADAPTERS, abs=1024)


def test_fsdp1_broadcasts_each_unit_at_once(tmp_path: Path) -> None:
    """The Trainer's FSDP1 broadcasts a unit's parameters before it shards them, unless this is switched off: torch
    flattens them, up to 250 MiB at a time. The root has embedding, head and last norm: 2 x (2 x 96 x 32 + 32) = 12,352
    bytes in bf16."""
    flattened = []
    for sends in (True, False):
        recipe = fsdp1_recipe(tmp_path, assumed={}, options={"sync_module_states": sends})
        loaded = [each for each in trace_run(recipe).ledger.allocations if each.phase == "load"]
        flattened.append(sum(each.op == "aten.cat.default" and each.nbytes == 12352 for each in loaded))
    assert flattened[0] == flattened[1] + 1


PARAMETERS = 2 * PACKED + REST


@pytest.mark.parametrize(
    ("nodes", "options", "copies"),
    [
        (1, {}, 8),  # each of 8 ranks loads it on the host
        (2, {}, 4),  # 4 to a machine
        (1, {"cpu_ram_efficient_loading": True}, 1),
        (2, {"cpu_ram_efficient_loading": True}, 1),  # the first rank of each machine
    ],
)
def test_copies_of_the_weights_on_a_machine(tmp_path: Path, nodes: int, options: dict[str, Any], copies: int) -> None:
    report = report_of(tmp_path, 8 // nodes, nodes=nodes, options=options)
    assert report.machine is not None
    assert (report.machine.gpus, report.machine.loading_bytes) == (8 // nodes, copies * 2 * PARAMETERS)
    first = report.ranks[0]
    if options:  # it reads them, and the rank next to it does not
        assert first.ranks == ("0" if nodes == 1 else "0, 4")
        assert first.host_bytes >= 2 * PARAMETERS > report.ranks[1].host_bytes
    assert f"machine with {8 // nodes} GPUs" in str(ranks_table(report).footnote)


def test_a_machine_has_the_offloaded_memory_of_all_its_ranks(tmp_path: Path) -> None:
    report = report_of(tmp_path, 8, nodes=1, options={"offload_params": True, "cpu_offload_pin_memory": False})
    assert report.machine is not None
    assert report.machine.held_bytes == 8 * report.ranks[0].host_bytes
    # bf16 shards, gradients and two states of all ranks
    assert report.machine.held_bytes >= 4 * 2 * PARAMETERS


def test_staged_weights_are_packed_in_the_memory_of_one_host(tmp_path: Path) -> None:
    report = report_of(tmp_path, 8, options={"cpu_ram_efficient_loading": True}, **QLORA)
    assert report.machine is not None
    # in addition to the weights, the states of each linear layer: tables of 16 and 256 fp32 values, and a byte for 64
    # weights
    states = 14 * 4 * (16 + 256) + 2 * PACKED // 64
    assert 0 <= report.machine.loading_bytes - (WHOLE_ON_HOST - ADAPTERS + states) <= 14 * 3 * 8
