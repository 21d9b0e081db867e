"""`axmem_trace models` and `axmem_trace gpus --list`: the known models and cards, as text and JSON."""

from __future__ import annotations

import json
import re

import pytest

from axmem_trace.__main__ import main


def test_models_as_text(capsys):
    assert main(["models", "llama-3.1-8b"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^meta-llama/Llama-3\.1-8B +8\.03 B  llama ", out, flags=re.MULTILINE)
    assert re.search(r"^  = NousResearch/", out, flags=re.MULTILINE)


def test_models_as_json(capsys):
    assert main(["models", "--format", "json", "*/llama-3.1-8b"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert "meta-llama/Llama-3.1-8B" in [entry["id"] for entry in entries]
    assert all(type(entry["parameters"]) is int for entry in entries)


def test_all_models(capsys):
    assert main(["models", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) >= 200


def test_the_list_of_models_begins_with_the_meaning_of_the_columns(capsys):
    main(["models", "llama-3.1-8b"])
    lead, _, table = capsys.readouterr().out.partition("\n\n")
    assert all(word in lead for word in ("exact json", "derived", "recalled", "--hub"))
    assert re.match(r"base model +size  model_type +config\.json\n", table)
    assert max(map(len, lead.splitlines())) <= 80


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("no-such-model", "`axmem_trace models` lists all"),
        ("meta-llama/Llama-3.1-8C", "nearest: meta-llama/Llama-3.1-8B"),
    ],
)
def test_no_such_model(capsys, pattern, hint):
    assert main(["models", pattern]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"axmem_trace: no bundled base model matches {pattern!r}; {hint}")


def test_gpus_as_text(capsys):
    assert main(["gpus", "--list", "a100-40gb"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^card +GB +GiB  compute  known by$", out, flags=re.MULTILINE)
    assert re.search(r"^A100-40GB +40    39\.39      8\.0  reported$", out, flags=re.MULTILINE)
    assert re.search(r"^  = A100-SXM4-40GB$", out, flags=re.MULTILINE)
    assert re.search(r"^  MIG 3g\.20gb +20    19\.50 ", out, flags=re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


def test_gpus_as_json(capsys):
    assert main(["gpus", "--list", "--format", "json"]) == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert len(cards) > 250
    # 23.51 x 2^30 = 25,243,670,282.24
    assert cards["RTX 4090"] == {
        "name": "RTX 4090",
        "nominal_gb": 24,
        "memory_bytes": 25_243_670_282,
        "compute_capability": [8, 9],
        "basis": "reported",
        "other_names": [],
        "shares_system_memory": False,
    }
    assert cards["GB10"]["shares_system_memory"]


def test_no_such_card(capsys):
    assert main(["gpus", "--list", "h1000"]) == 2
    assert capsys.readouterr().err.startswith("axmem_trace: no card matches 'h1000'; nearest: H100")
