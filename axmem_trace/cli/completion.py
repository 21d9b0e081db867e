"""`axmem_trace completion SHELL`: a script for the shell's completion, made by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from axmem_trace.cli.terminal import write_output
from axmem_trace.errors import EXIT_ESTIMATED, AxmemError

SHELLS = ("bash", "zsh", "tcsh")
FILE_ARGUMENTS = ("config", "configs", "runs", "output", "snapshot")
Builders = Mapping[str, Callable[[], argparse.ArgumentParser]]


def build_completion_parser() -> argparse.ArgumentParser:
    """The parser of `completion`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace completion",
        description="Write a shell's completion script to standard output. It needs shtab: pip install shtab.",
        epilog='bash: eval "$(axmem_trace completion bash)" in ~/.bashrc',
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def run_completion(options: argparse.Namespace, builders: Builders) -> int:
    """Writes the script.

    Args:
        builders: the function that builds the parser of each command, by the command's name.

    Raises:
        AxmemError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise AxmemError("completion: shtab makes the script and is not installed: pip install shtab") from None
    script = shtab.complete(build_whole_parser(builders, shtab.FILE), shell=options.shell)
    # A word that is not a command is a configuration: with `default`, bash completes file names if nothing else
    # matches.
    write_output(script.replace("\ncomplete -o ", "\ncomplete -o default -o "), None)
    return EXIT_ESTIMATED


def build_whole_parser(builders: Builders, file_completion: Any) -> argparse.ArgumentParser:
    """One parser with all commands, as shtab needs it. Arguments that are files are marked with `file_completion`."""
    whole = argparse.ArgumentParser(prog="axmem_trace", add_help=False)
    commands = whole.add_subparsers()
    for name, build in builders.items():
        parser = build()
        for action in parser._actions:
            if action.dest in FILE_ARGUMENTS:
                action.complete = file_completion  # type: ignore[attr-defined]
        commands.add_parser(name, parents=[parser], add_help=False, help=parser.description)
    return whole
