"""Ruff formats the code. Only tables may be excluded, because their columns have a meaning. No torch."""

from __future__ import annotations

import ast
from itertools import chain

from support.paths import ROOT

MARK = "# fmt: " + "skip"
MIN_LINES = 7
MAX_LINES_OF_A_FILE = 400


def test_only_tables_are_kept_from_the_formatter():
    """A table is a value of several lines at the top level of a file."""
    wrong = []
    for path in chain(*(ROOT.joinpath(folder).rglob("*.py") for folder in ("axmem_trace", "tests", "scripts"))):
        text = path.read_text(encoding="utf-8")
        if MARK in text:
            tables = {
                each.end_lineno
                for each in ast.parse(text).body
                if isinstance(each, ast.Assign | ast.AnnAssign) and each.end_lineno - each.lineno + 1 >= MIN_LINES
            }
            marked = {number for number, line in enumerate(text.splitlines(), 1) if MARK in line}
            wrong += [f"{path.relative_to(ROOT)}:{number}" for number in sorted(marked - tables)]
    assert wrong == []


def test_no_file_is_long():
    files = chain(*(ROOT.joinpath(folder).rglob("*.py") for folder in ("axmem_trace", "tests", "scripts")))
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES_OF_A_FILE} == {}
