"""The output of a command: progress on a terminal, output files, standard output."""

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
    """Refuses a path that cannot be written, before its content is computed.

    Raises:
        AxmemError: the path cannot be written; the message has the reason.
    """
    if path is None:
        return
    try:
        why = _why_not_writable(path)
    except (OSError, ValueError) as error:  # the name is too long for the file system, or the folder can't be read
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
    """Writes a text to a file (UTF-8), or to standard output. The reader of standard output may have closed it
    (`| head`).

    Raises:
        AxmemError: the file cannot be written.
    """
    if path is None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # Python flushes again at exit, which needs an open file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AxmemError(f"{shortened_path(path)}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def show_progress(stream: TextIO) -> Iterator[Progress | None]:
    """A spinner with the current stage on a terminal; None if `stream` is not a terminal (a file, a pipe, CI)."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(file=stream).status("reading") as status:
        yield lambda stage: status.update(escape(stage))


@contextlib.contextmanager
def show_current(stream: TextIO) -> Iterator[Progress | None]:
    """One line on a terminal with the current stage, which is cleared at the end; None if `stream` is not a terminal.

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
