"""The options of each command, and the program in a separate process."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from support.paths import ROOT

import axmem_trace
from axmem_trace.__main__ import COMMANDS
from axmem_trace.cli.parser import (
    build_check_parser,
    build_compare_parser,
    build_gpus_parser,
    build_models_parser,
    build_page_parser,
    build_parser,
)


def run(*arguments, **options):
    """Runs the real program in a separate process."""
    command = [sys.executable, "-m", "axmem_trace", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, **options)


def surface(parser):
    return {
        " ".join(action.option_strings) or action.dest: (action.metavar, action.choices, action.default)
        for action in parser._actions
    }


def test_help_names_every_command_and_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    texts = {name: build().format_help() for name, (build, _) in COMMANDS.items()}
    named = re.findall(r"^  ([a-z]+) {2,}\S", texts["estimate"], re.MULTILINE)
    assert set(named) >= COMMANDS.keys() - {"estimate"}
    too_long = [(name, line) for name, text in texts.items() for line in text.splitlines() if len(line) > 80]
    assert not too_long


def test_the_options_of_each_command_are_frozen():
    assert surface(build_parser()) == {
        "-h --help": (None, None, "==SUPPRESS=="),
        "config": ("CONFIG.yml", None, None),
        "--set": ("key=value", None, []),
        "--assume": ("key=value", None, []),
        "--gpus": ("N", None, 0),
        "--nodes": ("N", None, 1),
        "--gpu": ("[N x] NAME|SIZE", None, ""),
        "--margin": ("SIZE|N%", None, ""),
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
        "--margin",
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
        "--counts": ("N,N,...", None, ()),
        **{option: surface(build_parser())[option] for option in run_options if option != "--gpu"},
        "--format": (None, ("text", "json"), "text"),
    }
    assert surface(build_page_parser()) == {
        "-h --help": (None, None, "==SUPPRESS=="),
        "report": ("REPORT.json", None, None),
        "--fit": ("FIT.json", None, None),
        "-o --output": ("FILE", None, None),
    }
    assert surface(build_models_parser()) == {
        "-h --help": (None, None, "==SUPPRESS=="),
        "pattern": ("PATTERN", None, ""),
        "--format": (None, ("text", "json"), "text"),
    }


def test_version_and_help_are_instant_and_go_to_stdout():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"axmem_trace {axmem_trace.__version__}\n", "")
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in surface(build_parser()):
        assert option.split()[-1] in done.stdout or option == "config"
