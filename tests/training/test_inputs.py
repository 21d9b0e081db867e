"""The number of tokens of an image, calculated by hand for each family, and their positions in the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.multimodal_models import write_multimodal_model

from axmem_trace.config import read_recipe
from axmem_trace.models.skeleton.model_config import build_model_config
from axmem_trace.notes import Notes
from axmem_trace.training.batches.batch import Batch
from axmem_trace.training.batches.media.patch_grids import smart_resize
from axmem_trace.training.batches.media.tile_choice import best_resolution, canvas_without_loss, closest_grid
from axmem_trace.training.batches.text import make_batch

# The tiny models: patches of 7 pixels, towers of 28 (16 patches), squares of 14 where patches are merged.
PLACEHOLDERS = {
    "llava": (28, 28, 16),  # (28/7)^2, CLIP's class token is added and removed
    "llava_next": (56, 56, 88),  # 2x2 tiles: 8 lines of 8 patches and a newline = 72, and the whole image's 16
    "llava_onevision": (28, 56, 52),  # 1x2 tiles: 4 lines of 8 and a newline = 36, and 16
    "pixtral": (21, 28, 12),  # 3 lines of 4 patches
    "mistral3": (28, 28, 4),  # (28/14)^2
    "qwen2_vl": (140, 112, 80),  # 10 x 8 squares of 14
    "qwen2_5_vl": (140, 112, 80),
    "qwen3_vl": (56, 56, 16),  # 3136 pixels, the minimum
    "glm4v": (112, 112, 64),  # 2 frames of 12544 pixels are within the limits
    "gemma3": (100, 300, 4),  # always mm_tokens_per_image
    "gemma4": (100, 100, 64),  # sqrt(70) = 8.4 squares on each side: 8 x 8
    "gemma4_unified": (100, 200, 55),  # 5.9 x 11.8 squares: 5 x 11
    "internvl": (56, 56, 20),  # 2x2 tiles and a thumbnail, 16 patches shuffled to 4
    "llama4": (56, 56, 20),  # 2x2 tiles and the whole, 16/4 each
    "mllama": (56, 56, 1),
    "paligemma": (50, 50, 16),
    "lfm2_vl": (256, 256, 64),  # squares of 32 pixels: 8 x 8
    "smolvlm": (30, 15, 12),  # resized to 56 x 28: 2 x 1 tiles and the whole, 4 each
    "idefics3": (56, 56, 20),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gemma4": {"max_soft_tokens": 70},
    "gemma4_unified": {"max_soft_tokens": 70},
    "smolvlm": {"size": {"longest_edge": 56}},
    "idefics3": {"size": {"longest_edge": 56}},
    "lfm2_vl": {"max_image_tokens": 70, "tile_size": 64},
}


def make(family: str, directory: Path, *, rows: int = 2, row_tokens: int = 128, assume: Any = (), **keys: Any) -> Batch:
    config = {
        "base_model": write_multimodal_model(family, directory),
        "processor_type": "AutoProcessor",
        "processor_kwargs": OPTIONS.get(family, {}),
        "sequence_len": row_tokens,
        "micro_batch_size": rows,
        "datasets": [{"path": "x", "type": "chat_template"}],
        **keys,
    }
    recipe = read_recipe(config, hub="never", assumptions=assume)
    model_config = build_model_config(recipe, Notes())
    return make_batch(recipe, model_config, rows=rows, row_tokens=row_tokens, packed=False)


def placeholders(batch: Batch) -> torch.Tensor:
    return batch.inputs["labels"] == -100


@pytest.mark.parametrize("family", PLACEHOLDERS)
def test_an_image_has_as_many_tokens_as_its_processor_makes(family: str, tmp_path: Path) -> None:
    height, width, expected = PLACEHOLDERS[family]
    batch = make(family, tmp_path, image_size=[width, height])
    assert placeholders(batch).sum(dim=1).tolist() == [expected, expected]
    assert any(f"{expected} image tokens in each row" in note.text for note in batch.notes)


def test_without_a_size_the_image_leaves_tokens_in_the_row(tmp_path: Path) -> None:
    # 100 tokens in each row: 9 x 9 squares and their two marks fit, 10 x 10 do not
    batch = make("qwen2_vl", tmp_path, row_tokens=100)
    assert placeholders(batch).sum(dim=1).tolist() == [81, 81]
    assert batch.inputs["input_ids"].shape == (2, 100)


def test_an_image_longer_than_the_row_makes_the_row_longer(tmp_path: Path) -> None:
    # 10 x 8 squares, two marks, a token of text before and after
    batch = make("qwen2_vl", tmp_path, row_tokens=64, image_size=[112, 140])
    assert batch.inputs["input_ids"].shape == (2, 84)
    assert any("cuts no rows" in note.text for note in batch.notes)


def test_pixel_limits_come_from_processor_kwargs(tmp_path: Path) -> None:
    # 42 x 42 pixels at most: 3 x 3 squares of 14
    batch = make("qwen2_vl", tmp_path, image_size=560, processor_kwargs={"min_pixels": 196, "max_pixels": 1764})
    assert placeholders(batch).sum(dim=1).tolist() == [9, 9]
    assert batch.inputs["image_grid_thw"].tolist() == [[1, 6, 6]] * 2
    # 36 patches for each image, each of 3 channels x 2 frames x 7 x 7 pixels
    assert batch.inputs["pixel_values"].shape == (72, 294)


def test_several_images_in_a_row(tmp_path: Path) -> None:
    batch = make("llava", tmp_path, assume=["images_per_row=3"])
    assert placeholders(batch).sum(dim=1).tolist() == [48, 48]
    assert batch.inputs["pixel_values"].shape == (6, 3, 28, 28)


def test_audio_in_whole_windows(tmp_path: Path) -> None:
    # 40 s: 2 windows of 16 positions x 16 / 64 = 4 tokens
    batch = make("voxtral", tmp_path, assume=["audio_seconds_per_row=40"])
    assert (batch.inputs["input_ids"] == 24).sum(dim=1).tolist() == [8, 8]
    assert batch.inputs["input_features"].shape == (4, 8, 32)


def test_no_images_without_a_processor(tmp_path: Path) -> None:
    batch = make("qwen2_vl", tmp_path, processor_type=None)
    assert sorted(batch.inputs) == ["attention_mask", "input_ids", "labels"]


def test_text_avoids_the_image_token(tmp_path: Path) -> None:
    batch = make("mistral3", tmp_path, image_size=28)  # its image token is 10
    assert (batch.inputs["input_ids"] == 10).sum(dim=1).tolist() == [4, 4]


def test_sizes_by_hand() -> None:
    assert smart_resize(512, 512, 28, 56 * 56, 28 * 28 * 1280) == (504, 504)  # 18 x 28
    assert smart_resize(3000, 4000, 28, 56 * 56, 28 * 28 * 1280) == (840, 1148)  # 30 x 41 of 28: 964320 pixels
    assert closest_grid(448, 896, 448, 1, 12) == (2, 1)
    assert closest_grid(900, 900, 448, 1, 12) == (2, 2)  # 4 tiles cover less than twice its area, 9 cover more
    assert canvas_without_loss(300, 600, 336, 16) == (1, 2)
    assert best_resolution(1000, 1000, [(336, 672), (672, 672), (1008, 336)]) == (672, 672)


@pytest.mark.parametrize(("family", "kept"), [("gemma3", False), ("mistral3", True)])
def test_packed_rows_of_gemma_3_lose_their_mask(tmp_path: Path, family: str, kept: bool) -> None:
    config = {
        "base_model": write_multimodal_model(family, tmp_path),
        "sequence_len": 64,
        "micro_batch_size": 1,
        "datasets": [{"path": "x", "type": "chat_template"}],
        "sample_packing": True,
    }
    recipe = read_recipe(config, hub="never")
    assert recipe.batch.attention_mask
    model_config = build_model_config(recipe, Notes())
    packed, plain = (
        make_batch(recipe, model_config, rows=1, row_tokens=64, packed=packed).inputs for packed in (True, False)
    )
    assert "position_ids" in packed
    assert ("attention_mask" in packed) == kept
    assert "attention_mask" in plain
