"""Paths of the checkout's files, for tests of any folder."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SCRIPTS = ROOT / "scripts"
SHARED = ROOT.parent / "shared"
"""Facts outside the checkout. Tests that read them are skipped if the folder does not exist."""
