"""Every word that the package can print has an explanation."""

from __future__ import annotations

from typing import get_args

import pytest

from axmem_trace.__main__ import main
from axmem_trace.advice.fitting.candidates import CANDIDATES
from axmem_trace.config.document.key_table import KEYS
from axmem_trace.ledger import BUCKETS
from axmem_trace.ledger.allocation import Phase
from axmem_trace.notes import NoteKind
from axmem_trace.render.explain.explain import explain, nearest_words
from axmem_trace.render.explain.rules import find_notes, notes_in
from axmem_trace.report import holders
from axmem_trace.report.verdict import Verdict

WORDS = [
    *(word for word in get_args(Verdict) if word),
    *get_args(NoteKind),
    *get_args(Phase),
    *BUCKETS,
    *(value for name, value in vars(holders).items() if name.isupper() and isinstance(value, str)),
    *holders._BY_BUCKET.values(),
    *holders._BY_ROLE.values(),
    *(name for _, name in holders._BY_OPERATOR),
    *(candidate.name for candidate in CANDIDATES),
    *"states cached free allocated active reserved max_active max_allocated device_reserved nvidia-smi logits nf4".split(),
    "CUDA context", "expandable segments", "double quantisation", "micro batch", "margin", "gentlest set",
    "device_bytes", "headroom_bytes", "verdict", "counted_bytes",
]  # fmt: skip


@pytest.mark.parametrize("word", dict.fromkeys(WORDS))
def test_words_are_explained(word):
    text = explain(word)
    assert len(text.split()) > len(word.split()) + 5


def test_every_key_and_every_note_is_explained():
    words = {*KEYS, *(note.key for note in find_notes())}
    assert len(words) > 500
    assert [word for word in words if not explain(word)] == []


def test_every_note_comes_from_code_with_a_docstring():
    assert [f"{note.file}:{note.line}" for note in find_notes() if not note.about] == []


def test_notes_are_found_in_source():
    documented = '"""A rule.\n\n    Args:\n        d: a draft.\n    """'
    source = '"""A file."""\ndef rule(d):\n    ' + documented + '\n    d.note("ruled", "k", "t")\n'
    (note,) = notes_in(source, "a.py")
    assert (note.key, note.kind, note.line, note.about) == ("k", "ruled", 8, "A rule.")
    (note,) = notes_in('"""A file."""\nNote(kind="traced", key="m", text="t")\n', "a.py")
    assert (note.key, note.kind, note.about) == ("m", "traced", "A file.")


def test_an_unknown_word_names_near_ones(capsys):
    assert "workspace" in nearest_words("workspce")
    assert main(["explain", "workspce"]) == 2
    assert "nearest: workspace" in capsys.readouterr().err


def test_several_words_are_one_term(capsys):
    assert main(["explain", "fits", "with", "room"]) == 0
    assert "a tenth of the card" in capsys.readouterr().out


def test_a_candidate_is_explained_by_its_file():
    assert "effective batch" in explain("micro_batch")
    assert "It costs: " in explain("micro_batch")
