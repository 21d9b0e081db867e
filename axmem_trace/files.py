"""Checks paths from a user, and reads the JSON tables of this package.

A check raises no exception: an error of the file system means that there is no such file.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

MAX_PATH_LENGTH = 200


def is_file(path: Path) -> bool:
    """Whether there is a file of this name. The answer is no if the name is too long for the file system, or if the
    folder can't be read."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def expanded(name: str) -> Path:
    """The path, with `~` replaced if the user exists."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def shortened_path(path: Path) -> str:
    """A path for a message. It is shortened if it is longer than the width of most terminals."""
    text = str(path)
    return text if len(text) <= MAX_PATH_LENGTH else text[: MAX_PATH_LENGTH - 3] + "..."


def read_table(package: str, file: str) -> dict[str, Any]:
    """A JSON file of this package: `read_table("axmem_trace.catalogue", "models.json")`."""
    table: dict[str, Any] = json.loads(resources.files(package).joinpath(file).read_text(encoding="utf-8"))
    return table
