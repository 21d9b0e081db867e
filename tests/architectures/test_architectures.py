"""The table of architectures does not shrink: what it says was traced is traced."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import transformers
from load_script import load_script

SCRIPT = load_script("trace_architectures")
TABLE = SCRIPT.read_table()
same_release = pytest.mark.skipif(
    transformers.__version__ != SCRIPT.read_release(),
    reason="the table is of another release of transformers",
)


def test_a_type_that_is_not_traced_has_a_reason():
    for name, row in TABLE.items():
        assert set(row) == {"full", "lora", "oracle"}, name
        assert all(row.values()), name


def test_most_types_are_traced():
    traced = [name for name, row in TABLE.items() if row["full"] == "yes"]
    assert len(traced) >= 0.7 * len(TABLE)


@pytest.mark.slow
@same_release
@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row["full"] == "yes"])
def test_a_traced_type_is_still_traced(name):
    with tempfile.TemporaryDirectory() as home:
        base = SCRIPT.write_small_model(name, Path(home))
        SCRIPT._estimate({**SCRIPT.KEYS, "base_model": base})
