"""The command line: its options, its exit codes, and the content of each stream."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.hand_made_run import make_hand_made_report
from support.paths import ROOT

from axmem_trace.__main__ import main
from axmem_trace.cli.parser import build_check_parser
from axmem_trace.errors import ConfigError


@pytest.fixture
def calls(monkeypatch):
    """Replaces the estimate by a report written by hand, and stores the arguments of each call.

    `calls.behaviour` may be set to a function that runs instead.
    """

    class Calls(list):
        memory_bytes = 0
        behaviour = None

    made = Calls()

    def estimate(config, **options):
        made.append((config, options))
        return made.behaviour() if made.behaviour else make_hand_made_report(made.memory_bytes)

    module = ModuleType("axmem_trace.estimation")
    module.estimate = estimate
    monkeypatch.setitem(sys.modules, "axmem_trace.estimation", module)
    return made


def test_arguments_reach_the_estimate(calls, tmp_path):
    options = [
        "--set",
        "a=1",
        "--set",
        "b.c=x=y",
        "--assume",
        "router=worst",
        "--gpus",
        "2",
        "--gpu",
        "H100",
        "--hub",
        "--trust-remote-code",
        "--strict",
        "--axolotl",
        "0.20",
        "--snapshot",
        str(tmp_path / "s.pickle"),
        "-o",
        str(tmp_path / "r"),
    ]
    assert main(["run.yml", *options]) == 0
    assert calls == [
        (
            "run.yml",
            {
                "overrides": ("a=1", "b.c=x=y"),
                "assumptions": ("router=worst",),
                "gpu": "H100",
                "num_gpus": 2,
                "num_nodes": 1,
                "margin": "",
                "hub": "first",
                "trust_remote_code": True,
                "strict": True,
                "axolotl": "0.20",
                "progress": None,
                "moments": False,
                "snapshot": tmp_path / "s.pickle",
            },
        )
    ]


def test_defaults_and_offline(calls, capsys):
    main(["run.yml"])
    main(["run.yml", "--offline"])
    assert [options["hub"] for _, options in calls] == ["fallback", "never"]


def test_formats(calls, capsys):
    assert main(["run.yml"]) == 0
    assert capsys.readouterr().out.startswith("needs 402.0 MiB; name a card")
    assert main(["run.yml", "--full"]) == 0
    assert capsys.readouterr().out.startswith("somebody/tiny-<b>: qlora")
    assert main(["run.yml", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1
    assert main(["run.yml", "--format", "html"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_depth_folds_in_every_format(calls, capsys, form):
    main(["run.yml", "--format", form, "--full"])
    assert "lora_A" in capsys.readouterr().out
    main(["run.yml", "--format", form, "--depth", "1"])
    out = capsys.readouterr().out
    moments = r"highest in.*?Parameters|timeline.*|<h2>Memory over time.*?<h2>At the peak|<script.*?</script>"
    assert "lora_A" not in re.sub(moments, "", out, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], False),
        (["--full"], False),
        (["--format", "json"], False),
        (["--format", "json", "--full"], True),
        (["--format", "html"], True),
    ],
)
def test_moments_are_made_only_if_they_are_shown(calls, options, expected):
    main(["run.yml", *options])
    assert calls[0][1]["moments"] is expected


def test_depth_keeps_the_sums_in_json(calls, capsys):
    main(["run.yml", "--format", "json", "--depth", "1"])
    contents = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in contents["modules"]] == ["", "model", "lm_head"]
    resident = contents["resident"]
    assert sum(row["weight_bytes"] for row in contents["modules"]) == resident["weights"] + resident["adapters"]


def test_output_goes_only_to_the_file(calls, capsys, tmp_path):
    path = tmp_path / "report.json"
    assert main(["run.yml", "--format", "json", "-o", str(path)]) == 0
    assert json.loads(path.read_text())["schema_version"] == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("option", ["-o", "--snapshot"])
def test_a_path_that_cannot_be_written_is_refused_before_the_estimate(calls, capsys, tmp_path, option):
    assert main(["run.yml", option, str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"axmem_trace: {tmp_path}: cannot be written: it is a directory\n"
    missing = tmp_path / "no" / "file"
    assert main(["run.yml", option, str(missing)]) == 2
    assert capsys.readouterr().err == (
        f"axmem_trace: {missing}: cannot be written: {tmp_path / 'no'} is not a directory\n"
    )
    assert calls == []


def test_a_full_disk_is_reported_as_a_message(calls, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    assert main(["run.yml", "-o", "/dev/full"]) == 2
    assert capsys.readouterr().err == "axmem_trace: /dev/full: cannot be written: No space left on device\n"


@pytest.mark.parametrize(("memory_bytes", "code"), [(0, 0), (1 << 40, 0), (1 << 20, 3)])
def test_the_exit_code_says_whether_it_fits(calls, capsys, memory_bytes, code):
    calls.memory_bytes = memory_bytes
    assert main(["run.yml", "--format", "json"]) == code
    assert json.loads(capsys.readouterr().out)["fits"] == {0: None, 1 << 40: True, 1 << 20: False}[memory_bytes]


def test_a_config_error_is_one_message(calls, capsys):
    def refuse():
        raise ConfigError("no such optimizer", file="run.yml", line=3, key="optimizer", value="adawm", remedy="adamw?")

    calls.behaviour = refuse
    assert main(["run.yml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("axmem_trace: run.yml:3: optimizer: no such optimizer\n  value: 'adawm'\n  what to do: adamw?\n")

    assert main(["run.yml", "--format", "json"]) == 2
    out, again = capsys.readouterr()
    assert again == err
    (refusal,) = json.loads(out)["refusals"]
    assert refusal == {
        "key": "optimizer",
        "line": 3,
        "value": "adawm",
        "reason": "no such optimizer",
        "remedy": "adamw?",
    }


def test_a_bug_keeps_its_traceback(calls):
    def fail():
        raise KeyError("bug")

    calls.behaviour = fail
    with pytest.raises(KeyError, match="bug"):
        main(["run.yml"])


def test_interruption(calls, capsys):
    def interrupt():
        raise KeyboardInterrupt

    calls.behaviour = interrupt
    assert main(["run.yml"]) == 130
    assert capsys.readouterr() == ("", "axmem_trace: interrupted\n")


def test_progress_is_shown_only_on_a_terminal(calls, capsys, monkeypatch):
    main(["run.yml"])
    assert calls[0][1]["progress"] is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    calls.behaviour = lambda: calls[-1][1]["progress"]("tracing [step 1]") or make_hand_made_report()
    main(["run.yml", "--format", "json"])
    out, err = capsys.readouterr()
    assert callable(calls[1][1]["progress"])
    json.loads(out[out.index("{\n") :])
    assert err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: CONFIG.yml"),
        (["a.yml", "--set", "novalue"], "argument --set: 'novalue' is not of the form key=value"),
        (["a.yml", "--assume", "=1"], "argument --assume: '=1' is not of the form key=value"),
        (["a.yml", "--gpus", "0"], "argument --gpus: at least 1 is needed, not 0"),
        (["a.yml", "--gpus", "-2"], "argument --gpus: at least 1 is needed, not -2"),
        (["a.yml", "--gpus", "two"], "argument --gpus: 'two' is not a whole number"),
        (["a.yml", "--depth", "-1"], "argument --depth: at least 0 is needed, not -1"),
        (["a.yml", "--depth", "x"], "argument --depth: 'x' is not a whole number"),
        (["a.yml", "--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["a.yml", "--offline", "--hub"], "argument --hub: not allowed with argument --offline"),
        (["a.yml", "--off"], "unrecognized arguments: --off"),
        (["a.yml", "b.yml"], "unrecognized arguments: b.yml"),
    ],
)
def test_wrong_arguments_exit_with_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert f"axmem_trace: error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "code"),
    [(["roomy"], 0), (["roomy", "too-large"], 3), (["too-large", "refused", "roomy"], 2), (["refused"], 2)],
)
def test_check_says_a_line_of_each_file_and_has_the_gravest_code(calls, capsys, monkeypatch, files, code):
    def estimate(config, **options):
        assert options["num_gpus"] == 2
        if config == "refused":
            raise ConfigError("no such optimizer", remedy="another")
        return make_hand_made_report(1 << 20 if config == "too-large" else 1 << 40)

    monkeypatch.setattr(sys.modules["axmem_trace.estimation"], "estimate", estimate)
    assert main(["check", *files, "--gpus", "2"]) == code
    lines = capsys.readouterr().out.splitlines()
    words = {"roomy": "FITS WITH ROOM on ", "too-large": "DOES NOT FIT on ", "refused": "no such optimizer"}
    assert len(lines) == len(files)
    assert all(line.startswith(f"{name}: {words[name]}") for name, line in zip(files, lines, strict=True))


def test_each_option_of_a_run_is_passed_to_the_estimate(calls, capsys):
    """An option that is accepted but not passed on would be ignored silently."""
    offered = {action.dest for action in build_check_parser()._actions} - {"help", "configs"}
    assert main(["check", "run.yml", "--nodes", "3", "--gpu", "H100"]) == 0
    ((_, options),) = calls
    assert offered <= options.keys()
    assert (options["num_nodes"], options["gpu"]) == (3, "H100")


@pytest.mark.parametrize("word", ["model", "gpu", "estimates"])
def test_a_misspelt_command(calls, capsys, word):
    assert main([word]) == 2
    assert "no such command; did you mean `axmem_trace " in capsys.readouterr().err
    assert calls == []


def test_a_file_may_be_named_nearly_like_a_command(calls, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").touch()
    assert main(["model"]) == 0
    assert main(["estimate", "run.yml"]) == 0
    assert [config for config, _ in calls] == ["model", "run.yml"]


def test_a_reader_that_closes_the_pipe_is_not_an_error():
    done = subprocess.run(
        f"{sys.executable} -m axmem_trace models | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
