"""The file for programs that use the command line: all names in it exist."""

from __future__ import annotations

import re
import shlex

import pytest
from support.paths import ROOT

from axmem_trace.__main__ import COMMANDS
from axmem_trace.catalogue.gpus import find_gpu
from axmem_trace.config.document.key_table import KEYS
from axmem_trace.report import Report

TEXT = (ROOT / "axmem_trace" / "SKILL.md").read_text(encoding="utf-8")
LINES = re.findall(r"\| `(axmem_trace .+?)` \|", TEXT)


@pytest.mark.parametrize("line", LINES)
def test_commands_parse(line):
    words = shlex.split(line)[1:]
    name = words.pop(0) if words[0] in COMMANDS else "estimate"
    build, _ = COMMANDS[name]
    options = build().parse_args(words)
    assert not getattr(options, "gpu", "") or find_gpu(options.gpu).memory_bytes


def test_every_command_is_named():
    assert {name for name in COMMANDS if f"axmem_trace {name} " not in TEXT} <= {"estimate", "completion"}


def test_keys_and_fields_exist():
    known = {*KEYS, *Report.__dataclass_fields__, "device_bytes", "kind", "direction", "not_modelled", "try"}
    words = {
        word
        for code in re.findall(r"`([^`|]+)`", TEXT)
        for word in re.findall(r"[a-z]+_[a-z_0-9]+(?=[:=` ])", f"{code} ")
    }
    assert words - known - {"axmem_trace", "adamw_bnb_8bit"} == set()


def test_it_is_in_the_package():
    assert "**/*.md" in (ROOT / "setup.cfg").read_text()
