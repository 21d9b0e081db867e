"""`axolotl memory CONFIG.yml`: this package's command line as a command of axolotl. It also accepts axolotl's own
options for configuration keys.

axolotl looks for commands in the entry point group `axolotl.cli_commands` since 0.19 (`cli/plugins.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import click
import yaml

from axmem_trace.__main__ import COMMANDS, main
from axmem_trace.cli.parser import build_parser
from axmem_trace.integrations.run_request import as_yaml


@click.command(
    "memory",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def memory(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Predict the GPU memory of a run, with no GPU."""
    context.exit(main(translate(arguments)))


def translate(arguments: Sequence[str]) -> list[str]:
    """Translates axolotl's options for keys (`--micro-batch-size 4`, `--no-sample-packing`, `--trl.beta=0.1`) to
    `--set`.

    If both have an option of the same name (`--strict`, `--trust-remote-code`), it is this package's option. The
    arguments of another command of this package (`axolotl memory gpus CONFIG.yml`) are not changed.

    Raises:
        click.UsageError: neither of them knows an option.
    """
    if arguments and arguments[0] in COMMANDS:
        return list(arguments)
    own, others = _split(arguments)
    changes = _keys_of(others) if others else {}
    return [*own, *(part for key, value in changes.items() for part in ("--set", f"{key}={_as_text(value)}"))]


def _as_text(value: Any) -> str:
    """The value as text for `--set`. In a text, axolotl recognises numbers, truth values and null, but never lists and
    mappings (`cli/config.py` `_coerce_value`)."""
    try:
        plain = isinstance(value, str) and not isinstance(yaml.safe_load(value), (list, dict))
    except yaml.YAMLError:
        plain = False
    return value if plain else as_yaml(value)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the arguments into this package's options (with their values and the configuration), and the rest.

    The value of an axolotl option may be the next argument, which looks like a configuration. If an unknown option has
    no `=`, `_keys_of` reads the argument after it as its value, so this argument stays with the option.
    """
    takes_value = {
        name: action.nargs != 0
        for action in build_parser()._actions
        for name in action.option_strings
        if not isinstance(action, argparse._HelpAction)
    } | {"-h": False, "--help": False}
    flags = _axolotl_flags()
    own: list[str] = []
    others: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        name, equals, _ = argument.partition("=")
        if not argument.startswith("-") or argument == "-":
            side, length = own, 1
        elif name in takes_value:
            side, length = own, 1 + (takes_value[name] and not equals)
        else:
            side, length = others, 1 + (name not in flags and not equals)
        side.extend(arguments[position : position + length])
        position += length
    return own, others


def _axolotl_options() -> tuple[Any, ...]:
    from axolotl.cli.config_options import AXOLOTL_CONFIG_CLI_OPTIONS

    return tuple(AXOLOTL_CONFIG_CLI_OPTIONS)


def _axolotl_flags() -> frozenset[str]:
    """Options without a value: `--flag/--no-flag`."""
    spellings = (spelling for (declared, *_) in _axolotl_options() for spelling in declared if "/" in spelling)
    return frozenset(half for spelling in spellings for half in spelling.split("/"))


def _keys_of(arguments: list[str]) -> dict[str, Any]:
    """axolotl's options, parsed as in `axolotl train`. Nested keys are written with dots.

    Raises:
        click.UsageError: an option that axolotl does not know.
    """
    from axolotl.cli.utils import add_options_from_config_options

    given: dict[str, Any] = {}
    command = click.command("memory", add_help_option=False)(
        add_options_from_config_options(_axolotl_options())(lambda **values: given.update(values))
    )
    command.main(args=arguments, standalone_mode=False)
    return {name.replace("__", "."): value for name, value in given.items() if value is not None}
