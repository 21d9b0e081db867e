"""`python -m axmem_trace CONFIG.yml`: arguments, a command, an exit code."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from axmem_trace.cli.check import run_check
from axmem_trace.cli.commands import list_models, run_estimate, run_page
from axmem_trace.cli.compare import run_compare
from axmem_trace.cli.completion import build_completion_parser, run_completion
from axmem_trace.cli.explain import build_explain_parser, run_explain
from axmem_trace.cli.fit import run_fit
from axmem_trace.cli.gpus import run_gpus
from axmem_trace.cli.parser import (
    build_check_parser,
    build_compare_parser,
    build_fit_parser,
    build_gpus_parser,
    build_models_parser,
    build_page_parser,
    build_parser,
)
from axmem_trace.cli.scale import build_scale_parser, run_scale
from axmem_trace.errors import AxmemError
from axmem_trace.imports import leave_at_once

COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]] = {
    "estimate": (build_parser, run_estimate),
    "check": (build_check_parser, run_check),
    "fit": (build_fit_parser, run_fit),
    "compare": (build_compare_parser, run_compare),
    "gpus": (build_gpus_parser, run_gpus),
    "explain": (build_explain_parser, run_explain),
    "page": (build_page_parser, run_page),
    "models": (build_models_parser, list_models),
    "scale": (build_scale_parser, run_scale),
    "completion": (
        build_completion_parser,
        lambda options: run_completion(options, {name: build for name, (build, _) in COMMANDS.items()}),
    ),
}
"""Each command's parser and function. The first command is used if none is named."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as in shells."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see `axmem_trace.errors`).

    A bug in this package is not caught: Python prints its traceback and exits with 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "estimate"
        if name != "explain":  # its words may look like commands
            refuse_misspelt_command(arguments)
        build, run = COMMANDS[name]
        return run(build().parse_args(arguments))
    except AxmemError as error:
        print(f"axmem_trace: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("axmem_trace: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if argv is None:  # the process belongs to the command
            leave_at_once()


def refuse_misspelt_command(arguments: Sequence[str]) -> None:
    """Refuses a word that is not a file, but is similar to a command.

    Raises:
        AxmemError: the message names the command that was probably meant.
    """
    word = arguments[0] if arguments else ""
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.75)
    if near and not Path(word).exists():
        raise AxmemError(f"{word}: no such file, and no such command; did you mean `axmem_trace {near[0]}`?")


if __name__ == "__main__":
    sys.exit(main())
