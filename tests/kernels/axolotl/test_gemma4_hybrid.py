"""Gemma 4's global layers with SDPA: their mask, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.kernel_recording import gpu_recording, site_of

from axmem_trace.kernels.axolotl import gemma4_hybrid
from axmem_trace.recipe.recipe import Attention, BaseModel, Model, Recipe

TOKENS = 64
HYBRID = Recipe(
    name="", model=Model(base=BaseModel(name="", config={}, source="")), attention=Attention(gemma4_hybrid=True)
)


def seen_mask(*, packed: bool, mask: torch.Tensor | None = None) -> Any:
    seen: list[Any] = []

    def sdpa(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> None:
        seen.append(attention_mask)

    forward = gemma4_hybrid._make_forward(sdpa, packed=packed)
    heads = torch.empty(1, 2, TOKENS, 512, dtype=torch.bfloat16, device="meta")
    positions = torch.arange(TOKENS, device="meta")[None]
    forward(None, heads, heads, heads, mask, position_ids=positions)
    return seen[0]


def test_packed_rows_get_a_mask_of_their_samples():
    mask = seen_mask(packed=True)
    assert mask.shape == (1, 1, TOKENS, TOKENS)
    assert mask.dtype == torch.bfloat16


def test_other_batches_keep_the_models_mask():
    assert seen_mask(packed=False) is None
    given = torch.empty(1, 1, TOKENS, TOKENS, device="meta")
    assert seen_mask(packed=True, mask=given) is given


def test_memory_of_the_mask():
    recording = gpu_recording()
    recorder = recording.recorder
    with recording:
        positions = torch.arange(TOKENS, device="meta")[None]
        mask = gemma4_hybrid._mask_of_samples(positions, torch.bfloat16)
    ledger = recorder.make_ledger()
    kept = [each.nbytes for each in ledger.allocations if each.freed_tick > recorder.now]
    # Positions, int64, and the mask, bf16.
    assert sorted(kept) == sorted([8 * TOKENS, 2 * TOKENS**2])
    # At the peak: the mask, positions, sample numbers (int64), three boolean matrices (samples, triangle, both), and
    # the negation with the same size.
    assert ledger.peak().allocated_bytes == 2 * 8 * TOKENS + 4 * TOKENS**2 + 2 * TOKENS**2
    del mask


@pytest.mark.parametrize(("head", "grouped"), [(256, True), (512, False)])
def test_large_heads_repeat_keys_and_values(head, grouped):
    from transformers.integrations import sdpa_attention

    model = torch.nn.Module()
    key = torch.empty(1, 1, 8, head)
    with site_of(gpu_recording(), model, HYBRID) as site:
        gemma4_hybrid.install_gemma4_hybrid(site)
        assert sdpa_attention.use_gqa_in_sdpa(None, key, key) is grouped
