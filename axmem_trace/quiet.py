"""Keeps what the traced libraries print, log and warn off the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from axmem_trace.errors import AxmemError

QUIET_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps what the traced libraries print, log and warn off the terminal; after an exception it is shown after all.

    Everything a user must know is in the report as a note; a library's "no GPU found" would only mislead here.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    said = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    except AxmemError:
        raise
    except Exception:
        sys.stderr.write(said.getvalue())
        raise
    finally:
        logging.disable(disabled)
