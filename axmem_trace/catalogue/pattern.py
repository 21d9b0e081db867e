"""Match names with a user's pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable


def make_matcher(pattern: str) -> Callable[[str], bool]:
    """A function that says whether a name contains `pattern`, or matches it if it has `*`, `?` or `[`; any letter case.

    >>> make_matcher("a100")("NVIDIA A100-SXM4-40GB"), make_matcher("*Qwen3-8B")("Qwen/Qwen3-8B-Base")
    (True, False)
    """
    wanted = pattern.casefold()
    if any(char in wanted for char in "*?["):
        return lambda name: fnmatch.fnmatchcase(name.casefold(), wanted)
    return lambda name: wanted in name.casefold()
