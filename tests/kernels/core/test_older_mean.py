"""What PyTorch until 2.1 kept for the backward of a mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import TINY

import axmem_trace


@pytest.mark.parametrize(("checkpointing", "norms"), [(False, 5), (True, 1)])
def test_every_norm_keeps_its_squares(tmp_path: Path, checkpointing: bool, norms: int):
    """Two layers of two norms and the last: the squares of 64 tokens of 256 features in fp32 each,
    64 * 256 * 4 = 65,536. Checkpointed, a layer's norms keep nothing."""
    changes = {"hidden_size": 256, "intermediate_size": 512}
    (tmp_path / "config.json").write_text(json.dumps({**TINY["llama"], **changes}))
    keys = {
        "base_model": str(tmp_path), "sequence_len": 64, "micro_batch_size": 1, "bf16": True,
        "datasets": [{"path": "x", "type": "alpaca"}], "gradient_checkpointing": checkpointing,
    }  # fmt: skip
    kept = [
        axmem_trace.estimate(keys, assumptions=given, hub="never").phases["step_2"].phases["forward"].end_bytes
        for given in ([], ["mean_keeps_input=true"])
    ]
    assert kept[1] - kept[0] == norms * 65_536
