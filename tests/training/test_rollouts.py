"""Generation in training, compared with transformers' own `generate` on the CPU: the same cache, logits and peak."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cpu_oracle import autocast_off_on_meta
from support.kernel_recording import recording_on
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.recipe.objective import Rollouts
from axmem_trace.training.rollouts import generate_completions

ROWS, PROMPT, COMPLETION, VOCABULARY = 3, 11, 6, 512
SETTINGS = {
    "plain": Rollouts(),
    "cooled": Rollouts(temperature=0.7),
    "of the likeliest": Rollouts(top_k=20, top_p=0.9),
}


def build(family: str, tmp_path: Path, device: str) -> Any:
    config = {
        "base_model": write_tiny_model(family, tmp_path / family, vocab_size=VOCABULARY),
        "rl": "grpo",
        "bf16": True,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x"}],
        "attn_implementation": "eager",
    }
    recipe = read_recipe(config, hub="never", assumptions=["autocast=false"])
    recipe = replace(recipe, precision=replace(recipe.precision, upcast_before=False))  # all in bf16
    return build_model(recipe, device=device).module.eval()


def run_generate(family: str, tmp_path: Path, settings: Rollouts) -> Ledger:
    """Runs the library's loop over all tokens."""
    model, recording = build(family, tmp_path, "cpu"), recording_on("cpu")
    ids = torch.ones(ROWS, PROMPT, dtype=torch.int64)
    options = {
        "do_sample": True,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "max_new_tokens": COMPLETION,
        "min_new_tokens": COMPLETION,
        "pad_token_id": 0,
        "eos_token_id": None,
        "use_cache": True,
    }
    with torch.no_grad(), recording:
        recording.recorder.mark("forward", 1)
        mask = torch.ones_like(ids)
        mask[-1, 0] = 0
        model.generate(input_ids=ids, attention_mask=mask, **options)
    return recording.recorder.make_ledger()


def run_ours(family: str, tmp_path: Path, settings: Rollouts, device: str) -> Ledger:
    """Runs our first and last pass."""
    model, recording = build(family, tmp_path, device), recording_on(device)
    with autocast_off_on_meta(), recording:
        recording.recorder.mark("forward", 1)
        generate_completions(
            model, model, recording.recorder, settings, rows=ROWS, prompt_tokens=PROMPT, completion_tokens=COMPLETION
        )
    return recording.recorder.make_ledger()


def sizes(ledger: Ledger) -> Counter[tuple[str, int]]:
    """Operators and bytes of all tensors that are at least as large as a layer's keys of one row."""
    return Counter((each.op, each.nbytes) for each in ledger.allocations if each.nbytes >= 2 * 16 * 8 * 2)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_first_and_last_pass_equal_those_of_generate(family: str, settings: Rollouts, tmp_path: Path) -> None:
    real, ours = run_generate(family, tmp_path, settings), run_ours(family, tmp_path, settings, "cpu")
    # `new_zeros` gives the cache the length that the passes between the first and the last would give it
    missing = {key: count for key, count in (sizes(ours) - sizes(real)).items() if "zeros" not in key[0]}
    assert missing == {}
    assert tensors_of_the_cache(real) == tensors_of_the_cache(ours)
    # the library also keeps small ids and masks for each row, and the tokens generated before
    found, expected = (each.peak(phase="forward", step=1).allocated_bytes for each in (ours, real))
    assert 0 <= expected - found <= 4096
    assert sizes(ours) == sizes(run_ours(family, tmp_path, settings, "meta"))


def tensors_of_the_cache(ledger: Ledger) -> int:
    """Number of keys and values of the last pass that `cat` made: 2 layers x 2 heads x (11 + 5) tokens x 8 in bf16."""
    nbytes = ROWS * 2 * (PROMPT + COMPLETION - 1) * 8 * 2
    return sum(each.op == "aten.cat.default" and each.nbytes == nbytes for each in ledger.allocations)
