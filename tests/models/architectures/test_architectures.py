"""The tables of architectures do not shrink: types marked as traced can be traced, and the allocations equal those of a
CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import transformers
from support.scripts import load_script

SCRIPT = load_script("trace_architectures")
TABLES = SCRIPT.read_tables()
INSTALLED = TABLES.get(transformers.__version__, {})
AT_LEAST = {
    "5.16.1": {"full": 169, "lora": 168, "oracle": 169},
    "5.20.1": {"full_checkpointed": 175, "lora_checkpointed": 174},
    "5.24.0": {"full_checkpointed": 189, "lora_checkpointed": 188},
}
"""The smallest numbers of traced types, of the 176 types in axolotl 0.19's transformers, the 182 in axolotl 0.21's and
the 196 in the newest. A better table raises these numbers; no change may lower them."""
NOWHERE = frozenset("blt ctrl gemma3n gemma4_assistant gemma4_unified_assistant git musicgen musicgen_melody".split())
"""Types that cannot be traced with any release that has them. The tables have the reasons."""
IN_ONE_RELEASE_ALONE: dict[str, frozenset[str]] = {}
"""By release, the types that cannot be traced with it, but can with another release."""
FAST = frozenset({"bart", "bloom", "llama", "mamba2", "qwen3_next"})
"""Half of an encoder-decoder, an old decoder, the usual decoder, a state-space model, a hybrid with experts: these are
traced in every run of the tests, the others only in runs with slow tests."""
same_release = pytest.mark.skipif(not INSTALLED, reason="there is no table of the installed transformers")


def traced() -> Iterator[pytest.param]:
    """Each type and column with a `yes`, of the installed release."""
    for name, row in INSTALLED.items():
        for column, found in row.items():
            if found == "yes":
                yield pytest.param(name, column, id=f"{name}-{column}", marks=() if name in FAST else pytest.mark.slow)


def untraced(table: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, row in table.items() if set(row.values()) != {"yes"}}


@same_release
def test_every_type_has_a_row():
    assert sorted(INSTALLED) == SCRIPT.list_types()


@pytest.mark.parametrize("release", TABLES)
def test_a_type_that_is_not_traced_has_a_reason(release):
    for name, row in TABLES[release].items():
        assert set(row) == set(AT_LEAST[release]), name
        for reason in row.values():
            assert reason == "yes" or len(reason) > 20, name


@pytest.mark.parametrize("release", TABLES)
def test_types_that_fail_in_only_one_release_are_listed(release):
    assert untraced(TABLES[release]) == (NOWHERE | IN_ONE_RELEASE_ALONE.get(release, frozenset())) & set(
        TABLES[release]
    )


@pytest.mark.parametrize("release", TABLES)
def test_the_table_does_not_shrink(release):
    for column, least in AT_LEAST[release].items():
        assert sum(row[column] == "yes" for row in TABLES[release].values()) >= least, column


@same_release
@pytest.mark.parametrize(("name", "column"), traced())
def test_types_that_were_traced_are_still_traced(name, column):
    assert SCRIPT.trace(name, (column,)) == {column: "yes"}
