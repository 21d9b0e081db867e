"""Attention kernels of the Hugging Face Hub: the release of each, and whether packed rows keep their mask."""

from __future__ import annotations

from pathlib import Path

import pytest

from axmem_trace.config.reader import read_recipe
from axmem_trace.recipe.recipe import Recipe


def _recipe(tmp_path: Path, kernel: str) -> Recipe:
    path = tmp_path / "c.yml"
    text = "base_model: meta-llama/Llama-3.1-8B\nmicro_batch_size: 2\nsequence_len: 2048\nlearning_rate: 0.0001\n"
    path.write_text(text + f"sample_packing: true\nbf16: true\nattn_implementation: {kernel}\n", encoding="utf-8")
    return read_recipe(path, hub="never")


@pytest.mark.parametrize(
    ("kernel", "release", "reported"),
    [
        ("kernels-community/flash-attn3", "flash_attention_3", False),
        ("kernels-community/vllm-flash-attn3", "flash_attention_3", False),  # axolotl's own gpt-oss examples
        ("kernels-community/vllm-flash-attn3@main", "flash_attention_3", False),
        ("kernels-community/flash-attn4", "flash_attention_4", False),
        ("somebody/flash-attn9", "flash_attention_2", True),
    ],
)
def test_the_release_of_a_hub_kernel(tmp_path, kernel, release, reported):
    recipe = _recipe(tmp_path, kernel)
    assert recipe.attention.kernel == release
    assert any("is not known here" in note.text for note in recipe.notes) is reported


def test_only_the_kernels_that_axolotl_lists_drop_the_mask(tmp_path):
    """`ATTN_IMPLS_SUPPORTING_PACKING` has flash-attn3, but not vllm-flash-attn3."""
    assert not _recipe(tmp_path, "kernels-community/flash-attn3").batch.attention_mask
    assert _recipe(tmp_path, "kernels-community/vllm-flash-attn3").batch.attention_mask
