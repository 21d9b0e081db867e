"""The command line's arguments, and what surrounds an estimate on a terminal. `__main__` tells the story."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from axmem_trace import __version__
from axmem_trace.errors import AxmemError

Progress = Callable[[str], None]

DESCRIPTION = "Predict the GPU memory of an axolotl fine-tuning run, with no GPU, no weights and no network."
EPILOG = """\
`axmem_trace models` lists the base models that need no network.

exit codes: 0 estimated; 1 a bug of axmem_trace (please report the traceback);
2 the configuration cannot be estimated; 3 estimated, but it does not fit the --gpu given"""
QUIET_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of an estimate."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", metavar="CONFIG.yml", help="an axolotl configuration")
    add(
        "--set",
        metavar="key=value",
        action="append",
        default=[],
        type=key_value,
        dest="overrides",
        help="change a key of the configuration (dots nest: lora.r=8); may be repeated",
    )
    add(
        "--assume",
        metavar="key=value",
        action="append",
        default=[],
        type=key_value,
        dest="assumptions",
        help="change what axolotl would derive by itself (autocast=false, router=worst, ...); may be repeated",
    )
    add("--gpus", metavar="N", type=positive_int, default=0, dest="num_gpus", help="number of GPUs of the run")
    add(
        "--gpu",
        metavar="NAME|24GiB",
        default="",
        help="the card: a name (H100, RTX 4090) or its memory; says whether it fits",
    )
    add("--format", choices=("text", "json", "html"), default="text", help="default: text")
    add("-o", "--output", metavar="FILE", type=Path, help="write the report there instead of to standard output")
    add("--depth", metavar="N", type=non_negative_int, help="fold modules deeper than N parts of their name")
    hub = parser.add_mutually_exclusive_group()
    hub.add_argument(
        "--offline",
        action="store_const",
        const="never",
        dest="hub",
        default="fallback",
        help="never ask the Hugging Face Hub for a base model's config.json",
    )
    hub.add_argument(
        "--hub",
        action="store_const",
        const="first",
        dest="hub",
        default="fallback",
        help="ask the Hub before the bundled catalogue",
    )
    add(
        "--trust-remote-code",
        action="store_true",
        help="allow a base model's own Python code to run, where the config asks for it",
    )
    add("--strict", action="store_true", help="unknown keys, and keys that are not modelled, are errors")
    add(
        "--snapshot",
        metavar="FILE",
        type=Path,
        help="write the predicted history for PyTorch's memory viewer (torch.cuda.memory format)",
    )
    add("--version", action="version", version=f"axmem_trace {__version__}")
    return parser


def build_models_parser() -> argparse.ArgumentParser:
    """The parser of `models`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace models", description="List the base models whose config.json is bundled.", allow_abbrev=False
    )
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="",
                        help="only ids that contain this, or match it as a shell pattern (*, ?)")  # fmt: skip
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    return parser


def key_value(text: str) -> str:
    """An argument of the form `key=value`, as it is.

    Raises:
        argparse.ArgumentTypeError: there is no key, or no `=`.
    """
    key, equals, _ = text.partition("=")
    if not key.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    return text


def non_negative_int(text: str) -> int:
    """0, 1, 2, ...

    Raises:
        argparse.ArgumentTypeError: `text` is anything else.
    """
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive_int(text: str) -> int:
    """1, 2, 3, ...

    Raises:
        argparse.ArgumentTypeError: `text` is anything else.
    """
    number = non_negative_int(text)
    if not number:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def check_writable(path: Path | None) -> None:
    """Refuses a path that cannot be written to before minutes are spent on what would go there.

    Raises:
        AxmemError: with the reason.
    """
    if path is None:
        return
    folder = path.parent
    if path.is_dir():
        raise AxmemError(f"{path}: cannot be written: it is a directory")
    if not folder.is_dir():
        raise AxmemError(f"{path}: cannot be written: {folder} is not a directory")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise AxmemError(f"{path}: cannot be written: permission denied")


def write_output(text: str, path: Path | None) -> None:
    """Writes the report to a file (UTF-8), or to standard output, whose reader may have gone away (`| head`).

    Raises:
        AxmemError: the file cannot be written.
    """
    if path is None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # Python flushes once more when it exits: give it somewhere to flush to
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AxmemError(f"{path}: cannot be written: {error.strerror or error}") from error


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
