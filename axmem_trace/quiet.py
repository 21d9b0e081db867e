"""Keeps what the traced libraries print, log and warn away from the user, and leaves streams and logging as they were.

Everything a user must know is in the report as a note; a library's "no GPU found" would only mislead here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

from axmem_trace.errors import AxmemError

QUIET_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # what torch's C++ warns of passes by Python's streams
}


def set_quiet_environment() -> None:
    """Asks the libraries themselves to be quiet, for the whole process: for a command of ours, not for a notebook."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class _Held(io.TextIOBase):
    """Takes the place of a stream: keeps what is written until it is released, and passes it on after that.

    A library that is imported meanwhile may keep this object for good (`logging.StreamHandler` keeps `sys.stderr`):
    what it writes later must reach the user's stream.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self.behind: Any = getattr(sys, name)
        self._name = name
        self._kept: list[str] | None = []

    def write(self, text: str) -> int:
        """Keeps the text, or passes it on."""
        if self._kept is None:
            self._onward().write(text)
        else:
            self._kept.append(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream that it passes on to."""
        if self._kept is None:
            self._onward().flush()

    def writable(self) -> bool:
        """It can be written to."""
        return True

    def release(self) -> str:
        """From now on all is passed on; returns what was kept."""
        kept, self._kept = self._kept or [], None
        return "".join(kept)

    def _onward(self) -> Any:
        now = getattr(sys, self._name)
        return self.behind if now is self else now


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """While open, nothing is shown of warnings, logs below an error, standard output and standard error.

    After an exception that is a bug of ours, what was kept is shown after all. It may be nested, and may be used as a
    decorator. It holds for the whole process, as `contextlib.redirect_stdout` does: other threads are quiet as well.
    """
    out, err = _Held("stdout"), _Held("stderr")
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            warnings.simplefilter("ignore")
            yield
    except AxmemError:
        raise
    except Exception:
        sys.stderr.write(out.release() + err.release())
        raise
    finally:
        logging.disable(disabled)
        out.release()
        err.release()


def aloud(call: Callable[[str], None]) -> Callable[[str], None]:
    """`call`, with the user's own streams while it runs: what it prints is seen although the libraries are quiet."""

    def call_aloud(text: str) -> None:
        out, err = user_stream("stdout"), user_stream("stderr")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            call(text)

    return call_aloud


def user_stream(name: Literal["stdout", "stderr"]) -> Any:
    """`sys.stdout` or `sys.stderr` as the user has it, behind all that keeps libraries quiet."""
    stream = getattr(sys, name)
    while isinstance(stream, _Held):
        stream = stream.behind
    return stream
