"""Hides prints, logs and warnings of the traced libraries, and restores streams and logging afterwards.

Everything that a user must know is in the report as a note. A library's "no GPU found" would only mislead here.
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
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # warnings of torch's C++ code do not use Python's streams
}


def set_quiet_environment() -> None:
    """Makes the libraries log errors only, in the whole process. This is for the command line, not for a notebook."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class _KeptOutput(io.TextIOBase):
    """Replaces a stream: it keeps the written text until it is released, and passes text on after that.

    A library that is imported during this time may keep this object permanently (`logging.StreamHandler` keeps
    `sys.stderr`). What the library writes later must reach the user's stream.
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
        """Flushes the stream to which text is passed on."""
        if self._kept is None:
            self._onward().flush()

    def writable(self) -> bool:
        """It can be written to."""
        return True

    def release(self) -> str:
        """Returns the kept text; from now on all text is passed on."""
        kept, self._kept = self._kept or [], None
        return "".join(kept)

    def _onward(self) -> Any:
        now = getattr(sys, self._name)
        return self.behind if now is self else now


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """While open, warnings, standard output, standard error and logs below the level of an error are not shown.

    After an exception that is a bug in this package, the hidden text is shown. This context manager may be nested, and
    may be used as a decorator. It applies to the whole process, like `contextlib.redirect_stdout`: other threads are
    quiet too.
    """
    out, err = _KeptOutput("stdout"), _KeptOutput("stderr")
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
    """Wraps `call` so that it runs with the user's own streams: its prints are shown although the libraries are
    quiet."""

    def call_aloud(text: str) -> None:
        out, err = user_stream("stdout"), user_stream("stderr")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            call(text)

    return call_aloud


def user_stream(name: Literal["stdout", "stderr"]) -> Any:
    """The user's own `sys.stdout` or `sys.stderr`, without the objects that hide the libraries' text."""
    stream = getattr(sys, name)
    while isinstance(stream, _KeptOutput):
        stream = stream.behind
    return stream
