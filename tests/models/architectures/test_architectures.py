"""The table of architectures does not shrink: what it says was traced is traced, and is what a CPU allocates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import transformers
from support.scripts import load_script

SCRIPT = load_script("trace_architectures")
TABLE = SCRIPT.read_table()
AT_LEAST = {"full": 169, "lora": 168, "oracle": 169}
"""Of the 176 types of transformers 5.16.1. A better table raises these; none may lower them."""
FAST = frozenset({"bart", "bloom", "llama", "mamba2", "qwen3_next"})
"""An encoder-decoder's half, an old decoder, the usual one, a state space, a hybrid with experts: these are traced in every
run of the tests, the rest in those with slow ones."""
same_release = pytest.mark.skipif(
    transformers.__version__ != SCRIPT.read_release(),
    reason="the table is of another release of transformers",
)


def traced() -> Iterator[pytest.param]:
    """Each type and column with a `yes`."""
    for name, row in TABLE.items():
        for column, found in row.items():
            if found == "yes":
                yield pytest.param(name, column, id=f"{name}-{column}", marks=() if name in FAST else pytest.mark.slow)


@same_release
def test_every_type_has_a_row():
    assert sorted(TABLE) == SCRIPT.list_types()


def test_a_type_that_is_not_traced_has_a_reason():
    for name, row in TABLE.items():
        assert set(row) == set(SCRIPT.COLUMNS), name
        for reason in row.values():
            assert reason == "yes" or len(reason) > 20, name


def test_the_table_does_not_shrink():
    for column, least in AT_LEAST.items():
        assert sum(row[column] == "yes" for row in TABLE.values()) >= least, column


@same_release
@pytest.mark.parametrize(("name", "column"), traced())
def test_what_was_traced_still_is(name, column):
    assert SCRIPT.trace(name, (column,)) == {column: "yes"}
