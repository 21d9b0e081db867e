"""The tensors that PyTorch until 2.1 kept for the backward of a mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_models import write_tiny_model
from support.whole_runs import make_config

import axmem_trace


@pytest.mark.parametrize(("checkpointing", "norms"), [(False, 5), (True, 1)])
def test_every_norm_keeps_its_squares(tmp_path: Path, checkpointing: bool, norms: int):
    """Two layers of two norms and the last: the squares of 64 tokens of 256 features in fp32 each,
    64 * 256 * 4 = 65,536. Checkpointed, a layer's norms keep nothing."""
    model = write_tiny_model("llama", tmp_path, hidden_size=256, intermediate_size=512)
    keys = make_config(tmp_path, base_model=model, sequence_len=64, bf16=True, gradient_checkpointing=checkpointing)
    kept = [
        axmem_trace.estimate(keys, assumptions=given, hub="never").phases["step_2"].phases["forward"].end_bytes
        for given in ([], ["mean_keeps_input=true"])
    ]
    assert kept[1] - kept[0] == norms * 65_536
