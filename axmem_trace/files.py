"""Paths from a user, checked without exceptions: an error of the file system means that there is no such file. And the
tables in this package's own files."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

MAX_PATH_LENGTH = 200


def is_file(path: Path) -> bool:
    """There is a file of this name. A name too long for the file system, or a folder that may not be entered, has none."""
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
    """A path for a message: one that is longer than most terminals are wide is shortened."""
    text = str(path)
    return text if len(text) <= MAX_PATH_LENGTH else text[: MAX_PATH_LENGTH - 3] + "..."


def read_table(package: str, file: str) -> dict[str, Any]:
    """A JSON file of this package: `read_table("axmem_trace.catalogue", "models.json")`."""
    table: dict[str, Any] = json.loads(resources.files(package).joinpath(file).read_text(encoding="utf-8"))
    return table
