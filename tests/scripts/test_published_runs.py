"""`scripts/published_runs.py`: it translates runs that others measured into configurations and assumptions."""

from __future__ import annotations

import json

import pytest
from support.paths import SCRIPTS, SHARED
from support.published_run import make_run

MEASURED = SHARED / "measured"
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


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
    assert (foak.adapters_unmeasured, case.adapters_unmeasured) == (True, False)
    packed = read_run(make_run(n_gpus=2, settings={**settings, "gptq": True, "fp16": True}))
    assert (packed.assumptions["gptq_weights"], packed.assumptions["fsdp_dtype"]) == ("parameters", "float16")


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
def test_the_loss_path_depends_on_the_version(version, base_model, path):
    from published_runs import read_run

    run = make_run(versions={"transformers": version}, settings={"base_model": base_model})
    assert read_run(run).assumptions["loss_path"] == path


def test_fused_kernels_of_fms():
    from published_runs import read_run

    plain = read_run(make_run(framework="x accelerated-peft-bnb-foak", settings={"lora_qkv_kernel": "approx"}))
    assert plain.assumptions["cross_entropy"] == "in_place"
    assert plain.assumptions["lora_kernels"] == "qkv,o"
    assert plain.assumptions["lora_kernels_of"] == "fms_acceleration"
    assert plain.config["liger_rms_norm"]
    fused = read_run(make_run(framework="x accelerated-peft-bnb-foak-liger"))
    assert fused.assumptions["loss_path"] == "liger_fused_linear"


def test_trls_own_preparation_keeps_norms_in_fp32():
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
def test_a_run_that_cannot_be_expressed_has_a_reason(changes, match):
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
    assert sum(case.source == "fms" and not case.cannot and "-oom-" not in case.id for case in cases) == 110


def without(record, *path):
    """A copy without one field."""
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
def test_a_missing_field_of_a_record_is_the_reason(tmp_path, record, reason):
    """An incomplete record does not stop the others. Each record becomes a case, and its row gives the reason."""
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


def test_records_of_the_other_files_may_also_be_incomplete(tmp_path):
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
def test_behaviour_of_older_versions_is_assumed_only_for_them(version, loading, repeats):
    from published_runs import read_run

    assumptions = read_run(make_run(versions={"transformers": version})).assumptions
    assert (assumptions["loading"], assumptions["repeats_kv"]) == (loading, repeats)
