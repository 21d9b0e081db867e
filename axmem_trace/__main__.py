"""`python -m axmem_trace CONFIG.yml`: arguments, a command, an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from axmem_trace.cli.commands import list_models, run_estimate
from axmem_trace.cli.parser import build_models_parser, build_parser
from axmem_trace.errors import AxmemError

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see `axmem_trace.errors`).

    A bug of ours leaves as an exception: Python prints its traceback and exits with 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["models"]:
            return list_models(build_models_parser().parse_args(arguments[1:]))
        return run_estimate(build_parser().parse_args(arguments))
    except AxmemError as error:
        print(f"axmem_trace: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("axmem_trace: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
