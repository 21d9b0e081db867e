"""`scripts/compare_published.py`: translations, figures and rendering; two real estimates of a tiny model."""

from __future__ import annotations

import json

import pytest
from support.paths import SCRIPTS, SHARED

MEASURED = SHARED / "measured"
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def make_run(**changes):
    settings = {
        "base_model": "mistralai/Mistral-7B-v0.1",
        "adapter": "qlora",
        "load_in_4bit": True,
        "gptq": False,
        "micro_batch_size": 4,
        "sequence_len": 4096,
        "fp16": False,
        "model_load_dtype": "bfloat16",
        "autocast": True,
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "lora_target_modules": ["q_proj"],
        **changes.pop("settings", {}),
    }
    return {
        "id": "fms-base-L78",
        "framework": "HF Trainer config accelerated-peft-bnb",
        "quality": "A",
        "n_gpus": 1,
        "metric": "max_allocated",
        "measured_gib": 15.25,
        "gpu": "NVIDIA A100 80GB",
        "extra": {"allocated_end_gib": 4.0},
        "versions": {"transformers": "4.48.1"},
        "axolotl_like_config": settings,
        **changes,
    }


def test_run_becomes_a_case():
    from published_runs import read_run

    case = read_run(make_run())
    assert case.cannot == ""
    assert case.measured == {"allocated": 15.25 * GIB, "end": 4.0 * GIB}
    assert case.config["adapter"] == "qlora"
    assert case.assumptions["loss_path"] == "shifted_copy"
    assert case.assumptions["autocast"] == "bfloat16"
    assert case.gpu == "A100-80GB"


def test_a_run_on_several_gpus_is_fsdp1():
    from published_runs import read_run

    settings = {"fsdp": ["full_shard", "auto_wrap"]}
    case = read_run(make_run(n_gpus=2, settings=settings))
    assert (case.cannot, case.num_gpus, case.config["fsdp_version"]) == ("", 2, 1)
    assert case.assumptions["fsdp_dtype"] == "bfloat16"
    assert case.assumptions["checkpoints_units"]
    assert "fsdp_adapters" not in case.assumptions
    foak = read_run(make_run(n_gpus=2, settings=settings, framework="HF Trainer config accelerated-peft-bnb-foak"))
    assert foak.assumptions["fsdp_adapters"] == "ignored"
    packed = read_run(make_run(n_gpus=2, settings={**settings, "gptq": True}))
    assert "packed buffers" in packed.cannot


@pytest.mark.parametrize(
    ("version", "base_model", "path"),
    [
        ("4.45.2", "mistralai/Mistral-7B-v0.1", "upcast_shifted_copy"),
        ("4.48.1", "mistralai/Mistral-7B-v0.1", "shifted_copy"),
        ("4.57.1", "mistralai/Mistral-7B-v0.1", "native"),
        ("5.13.1", "mistralai/Mistral-7B-v0.1", "native"),
        ("4.48.1", "bigcode/gpt_bigcode-santacoder", "half_shifted_copy"),
    ],
)
def test_loss_path_is_that_of_the_version(version, base_model, path):
    from published_runs import read_run

    run = make_run(versions={"transformers": version}, settings={"base_model": base_model})
    assert read_run(run).assumptions["loss_path"] == path


def test_fused_kernels_of_fms():
    from published_runs import read_run

    plain = read_run(make_run(framework="x accelerated-peft-bnb-foak", settings={"lora_qkv_kernel": "approx"}))
    assert plain.assumptions["cross_entropy"] == "in_place"
    assert plain.assumptions["lora_kernels"] == "qkv,o"
    assert plain.config["liger_rms_norm"]
    fused = read_run(make_run(framework="x accelerated-peft-bnb-foak-liger"))
    assert fused.assumptions["loss_path"] == "liger_fused_linear"


def test_trls_own_preparation_leaves_norms_in_fp32():
    from published_runs import read_run

    assumptions = read_run(make_run(framework="x baseline-peft-bnb")).assumptions
    assert (assumptions["kbit_preparation"], assumptions["cast_back"]) == (True, False)
    assert assumptions["embedding_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_gpus": 2}, "without FSDP"),
        ({"id": "litgpt-1"}, "own model code"),
        ({"id": "nobody-1"}, "no translation for runs of nobody"),
        ({"framework": "x accelerated-moe-scatter"}, "accelerated-moe-scatter of fms-acceleration"),
    ],
)
def test_what_cannot_be_expressed_says_why(changes, match):
    from published_runs import read_run

    assert match in read_run(make_run(**changes)).cannot


@pytest.mark.skipif(not MEASURED.exists(), reason="the measured runs are outside the checkout")
def test_every_published_run_is_translated_or_refused_with_a_reason():
    from compare_published import read_cases

    from axmem_trace.config import ASSUMPTIONS

    cases = read_cases(MEASURED)
    runs = json.loads((MEASURED / "runs.json").read_text(encoding="utf-8"))
    assert len(cases) > len(runs)
    assert all(bool(case.cannot) != bool(case.config) for case in cases)
    assert all(set(case.assumptions) <= set(ASSUMPTIONS) for case in cases)
    assert sum(case.source == "fms" and not case.cannot and "-oom-" not in case.id for case in cases) == 100


def test_figures():
    """Errors -0.1, 0, 0.1, 0.4: median 0.05, median of the absolute (0, 0.1, 0.1, 0.4) 0.1, nine tenths at rank 2.7:
    0.1 + 0.7 * 0.3 = 0.31; one of four too low."""
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
    """Measured 3 and 5 GiB at 1 and 2 rows: 1 + 2 a row; predicted 3 and 6: 0 + 3."""
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
    """One run that can be estimated, one that can't; the second call finds the estimate in the cache."""
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


def without(record, *path):
    """A copy that lacks one field."""
    record = json.loads(json.dumps(record))
    *outer, last = path
    for name in outer:
        record = record[name]
    del record[last]
    return record


LACKING = [
    ("metric unknown", make_run(metric="peak of nvtop"), "metric peak of nvtop"),
    ("no figure", without(make_run(), "measured_gib"), "does not say measured_gib"),
    ("a figure of nothing", make_run(measured_gib=0), "no figure"),
    ("a figure that is no number", make_run(measured_gib=float("nan")), "no figure"),
    ("no number of GPUs", without(make_run(), "n_gpus"), "does not say n_gpus"),
    ("two GPUs", make_run(n_gpus=2), "without FSDP"),
    ("no versions", without(make_run(), "versions"), "does not say versions"),
    ("no such version", make_run(versions={"transformers": "main"}), "transformers main"),
    ("no length", make_run(settings={"sequence_len": None}), ""),
    ("no settings", without(make_run(), "axolotl_like_config"), "does not say axolotl_like_config"),
    ("another source", make_run(id="colossalai-7b"), "no translation for runs of colossalai"),
    ("another framework", make_run(framework="trl galore"), "galore"),
    ("no framework", without(make_run(), "framework"), "does not say framework"),
    ("no id", without(make_run(), "id"), "does not say id"),
    ("no record", None, "can't be read"),
    ("peft's other methods", make_run(id="peft-ia3", settings={"adapter": "ia3"}), "adapter ia3"),
]


@pytest.mark.parametrize(("record", "reason"), [case[1:] for case in LACKING], ids=[case[0] for case in LACKING])
def test_what_a_record_lacks_is_the_reason(tmp_path, record, reason):
    """No record stops the others: each becomes a case, and the row says why."""
    from compare_published import make_rows, read_cases, render_json, render_text

    path = tmp_path / "runs.json"
    records = [record, without(make_run(quality="E", id="fms-2"), "extra")]
    for content in ([], {"runs": records}, records):
        path.write_text(json.dumps(content), encoding="utf-8")
        cases = read_cases(tmp_path)
    assert reason in cases[0].cannot
    assert cases[1].cannot == ""
    found = {"allocated": 16 * GIB, "reserved": 17 * GIB}
    rows = [row for case in cases for row in make_rows(case, {} if case.cannot else found)]
    assert "fms E allocated" in json.loads(render_json(rows))["groups"]
    assert not reason or any(reason in line for line in render_text(rows))


def test_records_of_the_other_files_may_lack_fields_too(tmp_path):
    from compare_published import make_rows, read_cases, render_text

    full = {
        "file": "a100_80gb.csv",
        "line": 18,
        "model": "mistralai/Mistral-7B-v0.1",
        "framework": "none",
        "n_gpus": 1,
        "method": "full",
        "per_device_bs": 4,
        "nvidia_smi_peak_mib": "81166",
    }
    point = {"variant": "full, no GC", "seq": 512, "batch": 1, "allocated_gb_1e9": {"model": 2.3}}
    (tmp_path / "out_of_memory.json").write_text(json.dumps([without(full, key) for key in full] + [full]))
    (tmp_path / "activation_probes.json").write_text(json.dumps({"points": [without(point, key) for key in point]}))
    cases = read_cases(tmp_path)
    assert [case.cannot for case in cases if "-oom-" in case.id][-1] == ""
    assert {case.cannot for case in cases if case.cannot} >= {
        f"the record does not say {key}" for key in ("file", "model", "variant", "seq", "allocated_gb_1e9")
    }
    rows = [row for case in cases for row in make_rows(case, {"device": 90 * GIB})]
    assert any("does not fit" in line for line in render_text(rows))


@pytest.mark.parametrize(
    ("version", "loading", "repeats"),
    [
        ("4.37.2", "before_4_50", True),
        ("4.48.1", "before_4_50", False),
        ("4.52.4", "current", False),
        ("5.3", "current", False),
    ],
)
def test_what_older_versions_did_is_assumed_only_for_them(version, loading, repeats):
    from published_runs import read_run

    assumptions = read_run(make_run(versions={"transformers": version})).assumptions
    assert (assumptions["loading"], assumptions["repeats_kv"]) == (loading, repeats)


def test_an_estimate_that_stops_is_reported_and_stops_no_other(tmp_path, monkeypatch, capsys):
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


def test_two_runs_of_one_id_are_two(tmp_path):
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
