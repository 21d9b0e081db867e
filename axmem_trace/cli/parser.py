"""The arguments of each command."""

from __future__ import annotations

import argparse
from pathlib import Path

from axmem_trace import __version__
from axmem_trace.cli.argument_types import key_value, list_of_counts, non_negative_int, positive_int

DESCRIPTION = """\
Predict the GPU memory of an axolotl fine-tuning run, with no GPU, no weights
and no network."""
EPILOG = """\
other commands (`axmem_trace COMMAND --help`):
  check       one line for each of several configurations
  fit         what makes a run fit its card, as a YAML patch
  gpus        which cards a run fits, and the largest micro batch of each
  compare     configurations, saved reports or measurements side by side
  explain     what a word, a note or a key of the report means
  page        one HTML page of a saved report
  models      the base models that need no network
  scale       the same run on 1, 2, 4, 8 and 16 GPUs
  completion  what a shell needs to complete commands and options
`axmem_trace gpus --list` lists the cards that are known by name.

exit codes:
  0  estimated
  1  a bug of axmem_trace (please report the traceback)
  2  the run can't run: axolotl refuses the configuration, or the run stops
     later (the report has the reasons in addition to the figures), or it
     cannot be estimated
  3  estimated, but it does not fit the --gpu given, or not with the --margin
  4  something that is not in the figures could change whether it fits"""


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
    add("config", metavar="CONFIG.yml", help="an axolotl configuration; - reads standard input")
    add_run_arguments(parser)
    add("--format", choices=("text", "json", "html"), default="text", help="default: text")
    add("-o", "--output", metavar="FILE", type=Path, help="write the report there instead of to standard output")
    add(
        "--full",
        action="store_true",
        help="all tables, notes and values that are used, not only the first screen; with json all modules and the timeline",
    )
    add("--depth", metavar="N", type=non_negative_int, help="fold modules deeper than N parts of their name (--full)")
    add(
        "--snapshot",
        metavar="FILE",
        type=Path,
        help="write the predicted history for PyTorch's memory viewer (torch.cuda.memory format)",
    )
    add("--version", action="version", version=f"axmem_trace {__version__}")
    return parser


def build_check_parser() -> argparse.ArgumentParser:
    """The parser of `check`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace check",
        description="Say of each configuration, in a line, what it needs and whether it fits.",
        epilog="exit codes: that of the worst file: 2 can't run or be estimated, 3 does not fit, 4 cannot say, else 0",
        allow_abbrev=False,
    )
    parser.add_argument("configs", metavar="CONFIG.yml", nargs="+", help="axolotl configurations")
    add_run_arguments(parser)
    return parser


def build_compare_parser() -> argparse.ArgumentParser:
    """The parser of `compare`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace compare",
        description="Compare runs: what differs in their settings, and what that does to their memory.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a configuration (.yml), a report saved with --format json (.json), a snapshot of PyTorch's allocator "
        "(.pickle) or a log of axolotl (.log, .txt); the first is the baseline",
    )
    add(
        "--try",
        metavar="'key=value ...'",
        action="append",
        default=[],
        dest="tries",
        help="the first configuration again, with these keys changed; may be repeated",
    )
    add_run_arguments(parser)
    add("--format", choices=("text", "markdown", "json"), default="text", help="default: text")
    add("-o", "--output", metavar="FILE", type=Path, help="write the comparison there instead of to standard output")
    return parser


def build_fit_parser() -> argparse.ArgumentParser:
    """The parser of `fit`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace fit",
        description="What makes a run fit its card: each change estimated, the gentlest set that fits as a YAML patch.",
        epilog="standard output has the patch only; the explanation is on standard error. exit codes: 0 it fits as it is or "
        "with the patch; 2 as of an estimate; 3 nothing that is allowed makes it fit; 4 cannot say",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", metavar="CONFIG.yml", help="an axolotl configuration; - reads standard input")
    add_run_arguments(parser)
    add(
        "--allow",
        metavar="WORD,...",
        action="append",
        default=[],
        help="permit what changes the learning (rank, sequence_len, quantised_base, effective_batch), or a key that the "
        "configuration sets to false",
    )
    add("--keep", metavar="KEY,...", action="append", default=[], help="keys that must not be changed")
    add("--all", action="store_true", help="estimate slow candidates too where a gentler change fits already")
    add("--format", choices=("text", "json"), default="text", help="of standard output; text is the YAML patch")
    add("-o", "--output", metavar="FILE", type=Path, help="write the whole changed configuration there as well")
    return parser


def add_run_arguments(parser: argparse.ArgumentParser, *, card: bool = True) -> None:
    """Adds the arguments that change a run or its lookup. They are the same for each command that estimates."""
    add = parser.add_argument
    add(
        "--set",
        metavar="key=value",
        action="append",
        default=[],
        type=key_value,
        dest="overrides",
        help="change a key of the configuration (lora_r=8; dots nest: trl.beta=0.1); may be repeated",
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
    add(
        "--gpus",
        metavar="N",
        type=positive_int,
        default=0,
        dest="num_gpus",
        help="GPUs of each machine; without it, the fewest that the configuration needs",
    )
    add("--nodes", metavar="N", type=positive_int, default=1, dest="num_nodes", help="machines; default: 1")
    if card:
        add(
            "--gpu",
            metavar="[N x] NAME|SIZE",
            default="",
            help='the card: a name ("RTX 4090", H100, as nvidia-smi prints it), a MIG slice ("A100-40GB 3g.20gb"), or its '
            "memory (23.5GiB); says whether it fits",
        )
    add(
        "--margin",
        metavar="SIZE|N%",
        default="",
        help="memory of each card that must stay free (1GiB, 5%%); with less the run does not fit (exit code 3)",
    )
    hub = parser.add_mutually_exclusive_group()
    hub.add_argument(
        "--offline",
        action="store_const",
        const="never",
        dest="hub",
        default="fallback",
        help="never load a base model's config.json from the Hugging Face Hub",
    )
    hub.add_argument(
        "--hub",
        action="store_const",
        const="first",
        dest="hub",
        default="fallback",
        help="look on the Hub before the bundled catalogue",
    )
    add(
        "--trust-remote-code",
        action="store_true",
        help="allow a base model's own Python code to run, where the configuration requests it",
    )
    add(
        "--axolotl",
        metavar="VERSION",
        default="",
        help="the release of axolotl whose rules hold (0.19.0); else the one installed here, else the newest known",
    )
    add(
        "--strict",
        action="store_true",
        help="unknown keys, keys given twice, and keys that are not modelled, are errors",
    )


def build_models_parser() -> argparse.ArgumentParser:
    """The parser of `models`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace models", description="List the base models whose config.json is bundled.", allow_abbrev=False
    )
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        default="",
        help="only ids that contain this, or match it as a shell pattern (*, ?)",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    return parser


def build_page_parser() -> argparse.ArgumentParser:
    """The parser of `page`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace page",
        description="Make one HTML page of a report that was saved with --format json --full.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("report", metavar="REPORT.json", type=Path, help="the saved report")
    add("--fit", metavar="FIT.json", type=Path, help="the answer of `fit`, saved as JSON, to show its changes too")
    add("-o", "--output", metavar="FILE", type=Path, help="write the page there instead of to standard output")
    return parser


def build_gpus_parser() -> argparse.ArgumentParser:
    """The parser of `gpus`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace gpus",
        description="Which cards and MIG slices a run fits, the smallest first, with the largest micro batch of each; or "
        "the list of cards known by name.",
        epilog="exit codes: as of an estimate; 3 where the run fits no card",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "config",
        metavar="CONFIG.yml|PATTERN",
        nargs="?",
        default="",
        help="an axolotl configuration; with --list a pattern: names that contain it, or match its *, ? or [",
    )
    add("--list", action="store_true", help="list the cards, with memory as PyTorch sees it; no estimate")
    add(
        "--all",
        action="store_true",
        help="laptops, small systems and old cards too, and those that the run does not fit",
    )
    add(
        "--counts",
        metavar="N,N,...",
        type=list_of_counts,
        default=(),
        help="numbers of each card; default: 1,2,4,8, with the configuration's engine, else DDP",
    )
    add_run_arguments(parser, card=False)
    add("--format", choices=("text", "json"), default="text", help="default: text")
    return parser
