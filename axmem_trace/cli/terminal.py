"""The terminal around a command: progress, output files, standard output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from axmem_trace.errors import AxmemError
from axmem_trace.files import shortened_path
from axmem_trace.progress import Progress


def refuse_unwritable(path: Path | None) -> None:
    """Refuses a path that cannot be written, before the long computation of its content.

    Raises:
        AxmemError: with the reason.
    """
    if path is None:
        return
    try:
        why = _why_not_writable(path)
    except (OSError, ValueError) as error:  # a name too long for the file system, a folder that may not be entered
        why = str(getattr(error, "strerror", None) or error)
    if why:
        raise AxmemError(f"{shortened_path(path)}: cannot be written: {why}")


def _why_not_writable(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        path.lstat()
    folder = path.parent
    if path.is_dir():
        return "it is a directory"
    if not folder.is_dir():
        return f"{shortened_path(folder)} is not a directory"
    return "" if os.access(path if path.exists() else folder, os.W_OK) else "permission denied"


def write_output(text: str, path: Path | None) -> None:
    """Writes the report to a file (UTF-8), or to standard output, whose reader may have closed it (`| head`).

    Raises:
        AxmemError: the file cannot be written.
    """
    if path is None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # Python flushes again at exit, and needs an open file for that
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AxmemError(f"{shortened_path(path)}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def show_progress(stream: TextIO) -> Iterator[Progress | None]:
    """A spinner with the current stage on a terminal; None where `stream` is none (a file, a pipe, CI)."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(file=stream).status("reading") as status:
        yield lambda stage: status.update(escape(stage))


@contextlib.contextmanager
def show_current(stream: TextIO) -> Iterator[Progress | None]:
    """What is done now, on one line of a terminal that is cleared at the end; None where `stream` is no terminal.

    Unlike `show_progress` it starts no thread, so the process can be forked.
    """
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    clear = "\r\x1b[K"

    def show(stage: str) -> None:
        stream.write(clear + stage[: os.get_terminal_size(stream.fileno()).columns - 1])
        stream.flush()

    try:
        yield show
    finally:
        stream.write(clear)
