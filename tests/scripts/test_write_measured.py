"""The tables of tests/measured/README.md: rows by hand, and a comparison with the existing file."""

from __future__ import annotations

import json

import pytest
from support.scripts import load_script

SCRIPT = load_script("write_measured")
GIB = 1 << 30


def make_row(name: str, predicted: float, measured: float, quantity: str = "allocated", num_gpus: int = 1, **rest):
    source = name.split("-")[0] if "-" in name else "probes"
    return SCRIPT.Row(
        id=name,
        source=source,
        quality="A",
        num_gpus=num_gpus,
        quantity=quantity,
        measured=measured * GIB,
        predicted=int(predicted * GIB),
        **rest,
    )


ROWS = [
    make_row("fms-a", 10, 10.1, line="x", rows=4), make_row("fms-b", 14, 14, line="x", rows=8),
    make_row("fms-a", 5, 5, "end"), make_row("probe LoRA r8 q,v, no GC 512", 9, 10, "after_forward"),
    make_row("probe LoRA r8 q,v, GC 512", 2, 2, "load"), make_row("peft-r8-torch1-x", 3, 3, "reserved"),
    make_row("msswift24-q", 8, 10, "reserved"), make_row("axolotl-x", 20, 30, "reserved"),
    make_row("fms-oom-f-L1", 81, 79, "device"), make_row("fms-oom-f-L2", 79, 79, "device"),
    make_row("fms-c", 0, 8, num_gpus=2, reason="2 GPUs: no"), make_row("fms-d", 0, 8, num_gpus=4, reason="4 GPUs: no"),
    make_row("fms-e", 9, 10, num_gpus=2, line="m x 2"), make_row("fms-oom-f-L3", 99, 79, "device", num_gpus=2),
]  # fmt: skip


@pytest.fixture(scope="module")
def blocks():
    return dict(SCRIPT.make_blocks(ROWS))


def test_a_deviation_over_five_per_cent_is_explained_or_marked(blocks):
    assert "| fms-a | A | max_allocated | 10.000 | 10.100 | -0.99 % |  |" in blocks["fms"]
    assert "-10.00 % | **unexplained** |" in blocks["notebook"]
    assert "+0.00 % | 24 rotary caches of 1 MiB" in blocks["notebook"]
    assert SCRIPT.explain(make_row("litgpt-x", 1, 2)) == "**unexplained**"
    assert SCRIPT.explain(make_row("litgpt-x", 1.99, 2)) == ""
    assert SCRIPT.explain(make_row("axolotl-x", 20, 20, "reserved")) == ""


def test_lines_and_reasons(blocks):
    # (4, 10) and (8, 14): 6, and 1 for each row; (4, 10.1) and (8, 14): 0.975 for each row
    assert "| x | 6.000 | 6.200 | 1.0000 | 0.9750 |" in blocks["lines"]
    assert "| two to eight GPUs: no | 2: fms-c, fms-d |" in blocks["missing"]


def test_runs_on_several_gpus_have_a_separate_table(blocks):
    assert blocks["many"].splitlines()[2:] == ["| fms-e | m x 2 | max_allocated | 9.000 | 10.000 | -10.00 % |"]
    assert "fms-e" not in "".join(text for name, text in blocks.items() if name != "many")


def test_runs_that_did_not_fit(blocks):
    assert "| f-L1 | 81.0 | does not fit |\n| f-L2 | 79.0 | **would fit** |" in blocks["did not fit"]
    assert "1 of 2 runs that did not fit on 80 GB are predicted not to." in blocks["summary"]


def test_only_the_blocks_are_written(tmp_path, monkeypatch):
    readme, comparison = tmp_path / "README.md", tmp_path / "found.json"
    readme.write_text("before\n<!-- begin: lines -->\nold\n<!-- end -->\nafter\n")
    comparison.write_text(json.dumps({"runs": [{**vars(row), "error": 0} for row in ROWS]}))
    monkeypatch.setattr(SCRIPT, "README", readme)
    assert SCRIPT.main([str(comparison)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- begin: lines -->\n| line |")
    assert text.endswith("\n<!-- end -->\nafter\n")
    assert "old" not in text


def test_the_readme_has_every_block_and_explains_each_deviation(blocks):
    text = SCRIPT.README.read_text(encoding="utf-8")
    found = {match["name"]: match[0] for match in SCRIPT.marked_blocks.BLOCK.finditer(text)}
    assert set(found) == set(blocks)
    for name in ("fms", "notebook", "peft", "msswift", "axolotl"):
        rows = [line.split(" | ") for line in found[name].splitlines() if line.startswith("| ") and " % |" in line]
        assert rows
        for row in rows:
            assert abs(float(row[5].removesuffix(" %"))) <= 5 or row[6].strip(" |"), row
