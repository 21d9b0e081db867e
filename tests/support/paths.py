"""Where the checkout's files are, for tests of any folder."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SCRIPTS = ROOT / "scripts"
SHARED = ROOT.parent / "shared"
"""Facts outside the checkout; tests that read them skip where there are none."""
