"""`scripts/compare_published.py`: its figures, its output, and two real estimates of a tiny model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from support.paths import SCRIPTS
from support.published_run import make_run

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_figures():
    """Errors -0.1, 0, 0.1, 0.4: the median is 0.05. The median of the absolute values (0, 0.1, 0.1, 0.4) is 0.1. Their
    90th percentile is at rank 2.7: 0.1 + 0.7 * 0.3 = 0.31. One of four is too low."""
    from published_figures import summarise

    figures = summarise([-0.1, 0.0, 0.1, 0.4])
    assert figures.median == pytest.approx(0.05)
    assert figures.median_absolute == pytest.approx(0.1)
    assert figures.percentile_90 == pytest.approx(0.31)
    assert figures.under_rate == 0.25
    assert figures.worst == 0.4


def make_row(**changes):
    from published_figures import Row

    given = {"id": "a", "source": "fms", "quality": "A", "num_gpus": 1, "quantity": "allocated", "measured": 2.0 * GIB}
    return Row(**{**given, "predicted": 3 * GIB, **changes})


def test_lines_have_intercept_and_slope():
    """Measured 3 and 5 GiB at 1 and 2 rows: 1 GiB, and 2 GiB for each row. Predicted 3 and 6: 0, and 3 for each row."""
    from published_figures import fit_lines

    rows = [
        make_row(line="x", rows=1, measured=3.0 * GIB, predicted=3 * GIB),
        make_row(line="x", rows=2, measured=5.0 * GIB, predicted=6 * GIB),
        make_row(line="alone", rows=2),
    ]
    (line,) = fit_lines(rows)
    assert line["measured"] == pytest.approx({"intercept": 1.0, "slope": 2.0})
    assert line["predicted"] == pytest.approx({"intercept": 0.0, "slope": 3.0})


def test_differences_are_taken_within_one_release():
    from published_figures import differences

    rows = [
        make_row(id="peft-r32-torch2.7.1-2025", source="peft", measured=4.0 * GIB, predicted=5 * GIB),
        make_row(id="peft-r64-torch2.7.1-2025", source="peft", measured=6.0 * GIB, predicted=8 * GIB),
        make_row(id="peft-r64-torch2.13.0-2026", source="peft"),
    ]
    (found,) = differences(rows)
    assert (found["measured"], found["predicted"]) == (2.0, 3.0)


def test_text_has_errors_groups_and_reasons():
    from compare_published import render_text

    rows = [make_row(), make_row(id="b", predicted=0, reason="two GPUs"), make_row(id="fms-oom-x", predicted=90 * GIB)]
    text = "\n".join(render_text(rows))
    assert "+50.00%" in text
    assert "A and B, max_allocated, one GPU" in text
    assert "two GPUs" in text
    assert "does not fit" in text


def test_json_has_its_schema():
    from compare_published import render_json

    found = json.loads(render_json([make_row(), make_row(predicted=0, reason="why")]))
    assert found["schema_version"] == 1
    assert set(found) == {"schema_version", "runs", "groups", "lines", "differences"}
    assert [run["error"] for run in found["runs"]] == [0.5, None]


def test_command_line(capsys, tmp_path):
    """One run that can be estimated and one that cannot. The second call finds the estimate in the cache."""
    import compare_published

    tiny = make_run(
        id="axolotl-tiny",
        axolotl_like_config={
            "base_model": "NousResearch/Llama-2-7b-hf",
            "sequence_len": 32,
            "micro_batch_size": 1,
            "val_set_size": 0,
            "overrides_of_model_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 16,
            },
        },
    )
    (tmp_path / "runs.json").write_text(json.dumps([tiny, make_run(id="litgpt-1")]), encoding="utf-8")
    arguments = [str(tmp_path), "--cache", str(tmp_path / "cache"), "--limit", "1"]
    assert compare_published.main(arguments) == 0
    first = capsys.readouterr().out
    assert "axolotl-tiny" in first
    assert "own model code" in first
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert compare_published.main(arguments) == 0
    assert capsys.readouterr().out == first


def test_missing_directory_is_reported(capsys, tmp_path):
    import compare_published

    assert compare_published.main([str(tmp_path / "nothing")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_an_estimate_that_fails_is_reported_and_does_not_stop_others(tmp_path, monkeypatch, capsys):
    import compare_published

    import axmem_trace

    def estimate(config, **_):
        raise RuntimeError("a hole")

    monkeypatch.setattr(axmem_trace, "estimate", estimate)
    (tmp_path / "runs.json").write_text(json.dumps([make_run(), make_run(id="fms-2")]))
    assert compare_published.main([str(tmp_path), "--cache", str(tmp_path / "cache")]) == 1
    assert capsys.readouterr().out.count("the estimate stopped: RuntimeError: a hole") == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", ["{", '{"other": []}', "3"])
def test_files_that_cannot_be_read_are_reported(tmp_path, capsys, content):
    import compare_published

    (tmp_path / "runs.json").write_text(content)
    assert compare_published.main([str(tmp_path)]) == 2
    assert "compare_published:" in capsys.readouterr().err


def test_two_runs_with_one_id_are_separate(tmp_path):
    """The cache's key is the whole request."""
    from compare_published import Case, predict_all

    def case(rows):
        return Case(id="same", source="x", quality="A", metric="?", num_gpus=1, measured={}, config={"rows": rows})

    import compare_published

    cases = [case(1), case(2)]
    state = compare_published._state_of_package()
    for one in cases:
        compare_published._cache_file(tmp_path, state, one).write_text(json.dumps({"allocated": one.config["rows"]}))
    assert [found["allocated"] for found in predict_all(cases, jobs=1, cache=tmp_path)] == [1, 2]


def test_device_memory_is_the_mean_of_the_ranks():
    """Two ranks with 10 and one with 40: the mean is 20. A row that is only a bound does not count."""

    def row(count, nbytes, basis="recorded"):
        return SimpleNamespace(count=count, device_bytes=nbytes, basis=basis)

    import compare_published

    ranks = (row(2, 10), row(1, 40), row(5, 90, "at most"))
    report = SimpleNamespace(ranks=ranks, peak=SimpleNamespace(device_bytes=7))
    assert compare_published.mean_device_bytes(report) == 20
    assert compare_published.mean_device_bytes(SimpleNamespace(ranks=(), peak=report.peak)) == 7
