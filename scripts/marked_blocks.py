"""Parts of a README that a script writes, between `<!-- begin: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable

BLOCK = re.compile(r"(<!-- begin: (?P<name>.+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def fill(text: str, write: Callable[[str, str], str]) -> str:
    """The text with each block's body replaced by `write(name, body)`."""
    return BLOCK.sub(lambda found: found[1] + write(found["name"], found["body"]) + found[4], text)


def read(text: str, name: str) -> str:
    """The body of one block.

    Raises:
        KeyError: there is none of this name.
    """
    return {found["name"]: found["body"] for found in BLOCK.finditer(text)}[name]
