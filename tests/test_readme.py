"""The README is correct: its commands run and print the output that it shows, and all names in it exist."""

from __future__ import annotations

import configparser
import re
import shlex
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest
import yaml
from support.new_process import run_command
from support.paths import ROOT
from support.scripts import load_script

from axmem_trace.__main__ import COMMANDS as COMMAND_NAMES
from axmem_trace.catalogue.gpus import find_gpu
from axmem_trace.cli.parser import build_parser
from axmem_trace.config.assumption_table import ASSUMPTIONS

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PINS = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / ".ci" / "pins-0.21.txt").read_text(), re.MULTILINE))
pinned = pytest.mark.skipif(
    any(version(name).partition("+")[0] != wanted for name, wanted in PINS.items()),
    reason="the figures in the README are those of the versions that axolotl 0.21 pins",
)
SCRIPT = load_script("write_readme")
COMMANDS = re.findall(r"^\$ (axmem_trace .+)$", TEXT, re.MULTILINE)


def blocks() -> list[tuple[Path, str]]:
    """The file and the name of every generated part."""
    found = [(path, path.read_text(encoding="utf-8")) for path in SCRIPT.FILES]
    return [(path, part["name"]) for path, text in found for part in SCRIPT.marked_blocks.BLOCK.finditer(text)]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, tmp_path):
    arguments = [each.replace("report.json", str(tmp_path / "report.json")) for each in shlex.split(command)]
    if "models" not in arguments and "--offline" not in arguments:
        arguments.append("--offline")
    found = run_command(arguments)
    assert found.returncode in (0, 3), found.stderr
    assert not found.stderr


@pytest.mark.parametrize("line", re.findall(r"^python3 -m venv (?:.+)$", TEXT, re.MULTILINE))
def test_set_up_lines_name_what_exists(line):
    steps = [shlex.split(step) for step in line.split("&&")]
    assert steps[0] == ["python3", "-m", "venv", ".venv"]
    assert steps[1] == [".", ".venv/bin/activate"]
    assert steps[2][:2] == ["pip", "install"]
    assert steps[3][0] in ("axmem_trace", "python")
    for word in steps[3]:
        assert not word.startswith("configs/") or (ROOT / word).exists()


NEEDS_NO_ESTIMATE = ("assumptions", "measured", "trust", "kinds", "speed")


@pinned
@pytest.mark.parametrize(("path", "name"), [part for part in blocks() if part[1] not in NEEDS_NO_ESTIMATE])
def test_estimates_in_the_documents_are_up_to_date(path, name):
    text = path.read_text(encoding="utf-8")
    assert SCRIPT.rewrite(text, only=name) == text, "run scripts/write_readme.py"


@pytest.mark.parametrize(("path", "name"), [part for part in blocks() if part[1] in NEEDS_NO_ESTIMATE])
def test_tables_in_the_documents_are_up_to_date(path, name):
    text = path.read_text(encoding="utf-8")
    assert SCRIPT.rewrite(text, only=name) == text, "run scripts/write_readme.py"


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_every_flag_is_documented():
    flags = {option for action in build_parser()._actions for option in action.option_strings if option[:2] == "--"}
    undocumented = {flag for flag in flags - {"--help", "--version", "--output"} if flag not in TEXT}
    assert not undocumented


def test_every_assumption_is_documented():
    table = (ROOT / "docs" / "assumptions.md").read_text(encoding="utf-8")
    assert {name for name in ASSUMPTIONS if f"| `{name}` |" not in table} == set()


def test_the_tree_names_every_package():
    tree = TEXT[TEXT.index("axmem_trace/\n  __main__.py") :].partition("```")[0]
    packages = [each for each in (ROOT / "axmem_trace").iterdir() if not each.name.startswith(("_", "."))]
    missing = [each.name for each in packages if each.name.removesuffix(".py") not in tree and each.name != "py.typed"]
    assert set(missing) <= {"errors.py", "model_facts.py", "notes.py", "units.py"}, missing


def test_the_commands_are_in_the_synopsis():
    synopsis = TEXT[TEXT.index("## Command line") :].partition("```\n")[0]
    for name in COMMAND_NAMES:
        assert name == "estimate" or f"axmem_trace {name} " in synopsis


def test_the_console_command_is_this_program():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].split("\n")[1:] == [
        "axmem_trace = axmem_trace.__main__:main"
    ]
    point = EntryPoint("axmem_trace", "axmem_trace.__main__:main", "console_scripts")
    assert point.load()(["models", "Qwen3-8B"]) == 0


def test_the_workflow_and_the_hook_call_what_exists():
    (workflow,) = [block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "runs-on" in block]
    (job,) = yaml.safe_load(workflow)["jobs"].values()
    (line,) = [step["run"] for step in job["steps"] if step.get("run", "").startswith("axmem_trace ")]
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    for words in (shlex.split(line), [*shlex.split(hook["entry"]), "--gpu", "A100-80GB", "configs/a.yml"]):
        assert words[0] == "axmem_trace"
        build, _ = COMMAND_NAMES[words[1]]
        assert find_gpu(build().parse_args(words[2:]).gpu).name == "A100-80GB"
