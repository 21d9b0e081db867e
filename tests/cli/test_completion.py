"""Completion scripts: a real shell completes each command, option and file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from axmem_trace.__main__ import COMMANDS, main

needs_shtab = pytest.mark.skipif(find_spec("shtab") is None, reason="shtab is in the `test` extra")
needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


ASK = r"""
eval "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
function=$(complete -p axmem_trace | sed 's/.*-F \([^ ]*\) .*/\1/')
$function axmem_trace "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
printf '%s\n' "${COMPREPLY[@]}"
"""


def complete(script: str, words: list[str], folder) -> list[str]:
    """bash's completions for the last of the words."""
    command = ["bash", "-c", ASK, "bash", *words]
    environment = {**os.environ, "SCRIPT": script}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=60)
    return [line.rstrip() for line in done.stdout.splitlines() if line]


@pytest.fixture(scope="module")
def script():
    done = subprocess.run([sys.executable, "-m", "axmem_trace", "completion", "bash"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_shtab
@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["axmem_trace", "mod"], ["models"]),
        (["axmem_trace", "co"], ["compare", "completion"]),
        (["axmem_trace", "estimate", "--snap"], ["--snapshot"]),
        (["axmem_trace", "estimate", "--format", "j"], ["json"]),
        (["axmem_trace", "compare", "run"], ["run.yml"]),
        (["axmem_trace", "fit", "--al"], ["--all", "--allow"]),
        (["axmem_trace", "gpus", "--a"], ["--all", "--assume"]),
    ],
)
def test_bash(script, tmp_path, words, offered):
    (tmp_path / "run.yml").touch()
    assert set(offered) <= set(complete(script, words, tmp_path))


@needs_shtab
@needs_bash
def test_a_file_is_completed_if_no_command_matches(script):
    program = f"{script}\ncomplete -p axmem_trace"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert "-o default" in done.stdout


@needs_shtab
@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_know_the_commands(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_without_shtab_there_is_a_message(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err
