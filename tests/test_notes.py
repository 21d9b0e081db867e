"""The collection of notes."""

from __future__ import annotations

from dataclasses import replace

from axmem_trace.notes import Note, Notes

NOTE = Note(kind="ruled", key="causal-conv1d", text="fla's kernel")


def test_equal_notes_appear_once():
    notes = Notes([NOTE, replace(NOTE)])
    notes.append(replace(NOTE))
    notes.extend([NOTE, replace(NOTE)])
    assert list(notes) == [NOTE]


def test_different_notes_of_one_key_are_all_kept_in_order():
    """scans/install.py has two notes under `causal-conv1d`, of different kinds, which can occur in one run."""
    others = [replace(NOTE, kind="traced"), replace(NOTE, text="torch"), replace(NOTE, bytes=1), replace(NOTE, line=2)]
    notes = Notes([NOTE])
    notes.extend(others)
    notes.append(NOTE)
    assert list(notes) == [NOTE, *others]
    assert notes.of("causal-conv1d") == (NOTE, *others)
    assert notes.of("other") == ()
    assert NOTE in notes
    assert replace(NOTE, key="other") not in notes
    assert len(notes) == 5
