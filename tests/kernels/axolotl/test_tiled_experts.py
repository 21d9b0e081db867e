"""Tiled MLP with blocks of experts: with ScatterMoE the whole block is tiled, and gpt-oss's MLP is a block of experts
in any case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.kernel_configs import configure, warned
from support.kernel_lifetimes import live, tensor
from torch import nn

from axmem_trace import estimate
from axmem_trace.config import read_recipe
from axmem_trace.kernels.axolotl.tiled_mlp import TiledMlp
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import record_run

SCATTERMOE: dict[str, Any] = {"plugins": ["axolotl.integrations.kernels.KernelsPlugin"], "use_scattermoe": True}
TILES: dict[str, Any] = {"tiled_mlp": True, "tiled_mlp_num_shards": 4}
TOKENS, WIDTH, EXPERTS = 64, 32, 8


def test_a_block_of_experts_that_returns_scores_in_addition_to_rows() -> None:
    # gpt-oss also returns the router's scores, [tokens, experts], which have no gradient. There are the input rows
    # (4,096 in bf16), the output rows and the scores (1,024); only the input is kept
    with torch.device("meta"):
        router = nn.Linear(WIDTH, EXPERTS, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        experts = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16).requires_grad_(False)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return experts(x), router(x.reshape(-1, WIDTH))

    def tiled(x: torch.Tensor) -> torch.Tensor:
        rows, scores = TiledMlp.apply(run, x * 1, 4, [])
        assert (rows.shape, scores.shape) == ((1, TOKENS, WIDTH), (TOKENS, EXPERTS))
        out: torch.Tensor = rows
        return out

    rows, scores = TOKENS * WIDTH * 2, TOKENS * EXPERTS * 2
    lives = live([tensor(1, TOKENS, WIDTH)], tiled)
    assert lives.kept == 2 * rows
    # the rows and scores of the tiles, and the joined tensors
    assert lives.forward == 3 * rows + 2 * scores


def kept(directory: Path, **changes: Any) -> int:
    recipe = read_recipe(configure("qwen3_moe", directory, **changes), hub="never")
    built = build_model(recipe)
    ledger = record_run(recipe, built, build_optimizer(recipe, built.module)).ledger
    return sum(each.nbytes for each in ledger.on_gpu if each.kept and each.step == 1)


def test_scattermoe_s_blocks_are_tiled_and_other_experts_are_not(tmp_path: Path) -> None:
    assert kept(tmp_path, **SCATTERMOE, **TILES) < kept(tmp_path, **SCATTERMOE)
    report = estimate(configure("qwen3_moe", tmp_path, **TILES), hub="never")
    assert "this model has no Qwen3MoeMLP of qwen3_moe" in warned(report)["tiled_mlp"]


def test_a_tiled_block_keeps_only_its_input(tmp_path: Path) -> None:
    # two layers of experts that keep nothing inside: with twice as many experts for each token, the same is kept
    few, many = (
        kept(tmp_path, **SCATTERMOE, **TILES, overrides_of_model_config={"num_experts_per_tok": k}) for k in (1, 2)
    )
    assert few == many


@pytest.mark.parametrize("rows", [2])
def test_several_rows_fail_in_the_models_code(rows: int, tmp_path: Path) -> None:
    # a tile of several rows is not contiguous, but the block needs a view
    with pytest.raises(Exception, match="view size is not compatible"):
        kept(tmp_path, **SCATTERMOE, **TILES, micro_batch_size=rows)


@pytest.mark.parametrize(("original", "reported"), [({}, False), ({"tiled_mlp_use_original_mlp": False}, True)])
def test_a_compiled_mlp_inside_the_tiles_is_reported(original: dict[str, Any], reported: bool, tmp_path: Path) -> None:
    recipe = read_recipe(configure("llama", tmp_path, tiled_mlp=True, **original), hub="never")
    assert any(note.key == "tiled_mlp_use_original_mlp" for note in recipe.notes) == reported
