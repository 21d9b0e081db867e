"""`axmem_trace explain WORD`: explains a note, a key or a word of the report."""

from __future__ import annotations

import argparse

from axmem_trace.cli.commands import report_nothing_found
from axmem_trace.cli.terminal import write_output
from axmem_trace.errors import EXIT_ESTIMATED


def build_explain_parser() -> argparse.ArgumentParser:
    """The parser of `explain`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace explain",
        description="What a word of the report, a key of axolotl, a note, or a change that fit tries means.",
        allow_abbrev=False,
    )
    parser.add_argument("word", metavar="WORD", nargs="+", help="such as tight, workspace, lora_dropout, micro_batch")
    return parser


def run_explain(options: argparse.Namespace) -> int:
    """Prints every explanation of the word. An unknown word is an error, which lists the nearest words."""
    from axmem_trace.render.explain.explain import explain, nearest_words

    word = " ".join(options.word)
    text = explain(word)
    if not text:
        return report_nothing_found(f"no explanation of {word!r}", nearest_words(word), "see docs/report.md")
    write_output(text + "\n", None)
    return EXIT_ESTIMATED
