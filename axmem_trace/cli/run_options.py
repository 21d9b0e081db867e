"""Runs an estimate with a command's options; all commands use it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axmem_trace.progress import Progress
    from axmem_trace.recipe.recipe import Recipe
    from axmem_trace.report import Report


def estimate_run(
    config: str,
    options: argparse.Namespace,
    progress: Progress | None,
    *,
    overrides: Sequence[str] = (),
    **others: Any,
) -> Report:
    """Calls `estimate` with the options of `add_run_arguments`.

    Args:
        overrides: more changes to the configuration, after those of `--set`.
        others: arguments of `estimate` that only this command has; they override the options.
    """
    from axmem_trace.estimation import estimate

    asked = {
        **run_arguments(options),
        "overrides": (*options.overrides, *overrides),
        "progress": progress,
        "moments": False,
    }
    return estimate(config, **(asked | others))


def read_run(config: str, options: argparse.Namespace, *, overrides: Sequence[str] = (), **others: Any) -> Recipe:
    """Calls `read_recipe` with the options of `add_run_arguments`. The arguments are those of `estimate_run`."""
    from axmem_trace.config import read_recipe

    asked = {**run_arguments(options), "overrides": (*options.overrides, *overrides)}
    return read_recipe(config, **(asked | others))


def run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_run_arguments`, as arguments of `estimate` and `fit`."""
    return {
        "overrides": tuple(options.overrides),
        "assumptions": tuple(options.assumptions),
        "gpu": getattr(options, "gpu", ""),
        "num_gpus": options.num_gpus,
        "num_nodes": options.num_nodes,
        "margin": options.margin,
        "hub": options.hub,
        "trust_remote_code": options.trust_remote_code,
        "strict": options.strict,
        "axolotl": options.axolotl,
    }
