"""The command line: its options, its exit codes, and what is written to which stream."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.hand_made_run import make_hand_made_report
from support.paths import ROOT

import axmem_trace
from axmem_trace.__main__ import main
from axmem_trace.cli.parser import (
    build_check_parser,
    build_compare_parser,
    build_gpus_parser,
    build_models_parser,
    build_parser,
)
from axmem_trace.errors import ConfigError


@pytest.fixture
def calls(monkeypatch):
    """Replaces the estimate by a hand-made report, and keeps the arguments of each call.

    `calls.behaviour` may be set to a function that runs in place of it.
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


def run(*arguments, **options):
    """The real program in a process of its own."""
    command = [sys.executable, "-m", "axmem_trace", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, **options)


def surface(parser):
    return {
        " ".join(action.option_strings) or action.dest: (action.metavar, action.choices, action.default)
        for action in parser._actions
    }


def test_the_surface_is_frozen():
    assert surface(build_parser()) == {
        "-h --help": (None, None, "==SUPPRESS=="),
        "config": ("CONFIG.yml", None, None),
        "--set": ("key=value", None, []),
        "--assume": ("key=value", None, []),
        "--gpus": ("N", None, 0),
        "--nodes": ("N", None, 1),
        "--gpu": ("[N x] NAME|SIZE", None, ""),
        "--format": (None, ("text", "json", "html"), "text"),
        "-o --output": ("FILE", None, None),
        "--full": (None, None, False),
        "--depth": ("N", None, None),
        "--offline": (None, None, "fallback"),
        "--hub": (None, None, "fallback"),
        "--trust-remote-code": (None, None, False),
        "--axolotl": ("VERSION", None, ""),
        "--strict": (None, None, False),
        "--snapshot": ("FILE", None, None),
        "--version": (None, None, "==SUPPRESS=="),
    }
    run_options = (
        "--set",
        "--assume",
        "--gpus",
        "--nodes",
        "--gpu",
        "--offline",
        "--hub",
        "--trust-remote-code",
        "--axolotl",
        "--strict",
    )
    assert surface(build_check_parser()) == {
        "-h --help": (None, None, "==SUPPRESS=="),
        "configs": ("CONFIG.yml", None, None),
        **{option: surface(build_parser())[option] for option in run_options},
    }
    assert surface(build_compare_parser()) == {
        "-h --help": (None, None, "==SUPPRESS=="),
        "runs": ("RUN", None, None),
        "--try": ("'key=value ...'", None, []),
        **{option: surface(build_parser())[option] for option in run_options},
        "--format": (None, ("text", "markdown", "json"), "text"),
        "-o --output": ("FILE", None, None),
    }
    assert surface(build_gpus_parser()) == {
        "-h --help": (None, None, "==SUPPRESS=="),
        "config": ("CONFIG.yml|PATTERN", None, ""),
        "--list": (None, None, False),
        "--all": (None, None, False),
        **{option: surface(build_parser())[option] for option in run_options if option != "--gpu"},
        "--format": (None, ("text", "json"), "text"),
    }
    assert surface(build_models_parser()) == {
        "-h --help": (None, None, "==SUPPRESS=="),
        "pattern": ("PATTERN", None, ""),
        "--format": (None, ("text", "json"), "text"),
    }


def test_arguments_reach_the_estimate(calls, tmp_path):
    options = ["--set", "a=1", "--set", "b.c=x=y", "--assume", "router=worst", "--gpus", "2", "--gpu", "H100", "--hub",
               "--trust-remote-code", "--strict", "--axolotl", "0.20", "--snapshot", str(tmp_path / "s.pickle"), "-o",
               str(tmp_path / "r")]  # fmt: skip
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
                "hub": "first",
                "trust_remote_code": True,
                "strict": True,
                "axolotl": "0.20",
                "progress": None,
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
    assert capsys.readouterr().out.startswith("<div class='axmem-trace'>")


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_depth_folds_in_every_format(calls, capsys, form):
    main(["run.yml", "--format", form, "--full"])
    assert "lora_A" in capsys.readouterr().out
    main(["run.yml", "--format", form, "--depth", "1"])
    out = capsys.readouterr().out
    assert "lora_A" not in re.sub(r"highest in.*?Parameters|timeline.*", "", out, flags=re.DOTALL)


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
def test_a_path_that_cannot_be_written_is_refused_before_the_work(calls, capsys, tmp_path, option):
    assert main(["run.yml", option, str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"axmem_trace: {tmp_path}: cannot be written: it is a directory\n"
    missing = tmp_path / "no" / "file"
    assert main(["run.yml", option, str(missing)]) == 2
    assert capsys.readouterr().err == (
        f"axmem_trace: {missing}: cannot be written: {tmp_path / 'no'} is not a directory\n"
    )
    assert calls == []


def test_a_disk_that_fails_is_a_message(calls, capsys):
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


def test_version_and_help_are_instant_and_go_to_stdout():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"axmem_trace {axmem_trace.__version__}\n", "")
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in surface(build_parser()):
        assert option.split()[-1] in done.stdout or option == "config"


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


def test_models_begin_with_what_the_columns_mean(capsys):
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
        "name": "RTX 4090", "nominal_gb": 24, "memory_bytes": 25_243_670_282, "compute_capability": [8, 9],
        "basis": "reported", "other_names": [], "shares_system_memory": False,
    }  # fmt: skip
    assert cards["GB10"]["shares_system_memory"]


def test_no_such_card(capsys):
    assert main(["gpus", "--list", "h1000"]) == 2
    assert capsys.readouterr().err.startswith("axmem_trace: no card matches 'h1000'; nearest: H100")


@pytest.mark.parametrize(
    ("files", "code"),
    [(["fits"], 0), (["fits", "too-large"], 3), (["too-large", "refused", "fits"], 2), (["refused"], 2)],
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
    words = {"fits": "FITS WITH ROOM on ", "too-large": "DOES NOT FIT on ", "refused": "no such optimizer"}
    assert len(lines) == len(files)
    assert all(line.startswith(f"{name}: {words[name]}") for name, line in zip(files, lines, strict=True))


def test_what_a_command_offers_for_a_run_reaches_the_estimate(calls, capsys):
    """An option that is offered and not handed on would be ignored without a word."""
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


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m axmem_trace models | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_what_the_package_offers_is_no_module():
    """`axmem_trace.estimate` is the function, whatever has been imported before."""
    code = "import axmem_trace.estimation, axmem_trace; assert callable(axmem_trace.estimate), axmem_trace.estimate"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    package = ROOT / "axmem_trace"
    modules = {path.name.removesuffix(".py") for path in package.iterdir()}
    assert not modules & set(axmem_trace.__all__), "a submodule would take the place of what the package offers"


def test_the_package_names_what_it_offers():
    assert {"estimate", "Report", "ConfigError", "AxmemError"} <= set(dir(axmem_trace))
    with pytest.raises(AttributeError, match="module 'axmem_trace' has no attribute 'estimates'"):
        _ = axmem_trace.estimates
