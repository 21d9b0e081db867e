"""`--assume key=value`: replaces a value that would otherwise be derived by axolotl's rules.

It can describe a run of another trainer."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from axmem_trace.config.assumption_table import ASSUMPTIONS, COUNT, Assumption
from axmem_trace.config.document.coercion import coerce, describe
from axmem_trace.config.document.overrides import Settings, parse_settings
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import Reason, Recipe

_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}
MAX_COUNT = 1 << 27

_MAY_BE_ZERO = ("images_per_row", "added_tokens", "int8_outliers")


def apply_assumptions(recipe: Recipe, assumptions: Settings) -> Recipe:
    """The recipe with the assumed values, and a reason for each.

    Raises:
        ConfigError: an unknown key, or a value that the key does not accept.
    """
    given = dict(parse_settings(assumptions, "--assume"))
    for key in given:
        if key not in ASSUMPTIONS:
            raise _unknown(key)
    reasons = dict(recipe.reasons)
    for key in sorted(given, key=list(ASSUMPTIONS).index):
        assumption = ASSUMPTIONS[key]
        value = _value(key, assumption, given[key])
        try:
            recipe = assumption.apply_to(recipe, value)
        except ValueError as error:
            raise _bad_value(key, assumption, given[key], str(error)) from error
        except ConfigError as error:
            raise ConfigError(
                problem=error.problem, key=key, flag="--assume", value=given[key], accepted=error.accepted
            ) from error
        reasons[assumption.field] = Reason(value=str(value), text=f"--assume {key}", origin="assume")
    return replace(recipe, reasons=reasons)


def _value(key: str, assumption: Assumption, given: Any) -> Any:
    given = _ALIASES.get(given, given) if isinstance(given, str) else given
    if key == "optimizer_implementation" and given in ("for_loop", "forloop", "loop"):
        given = "for-loop"
    try:
        value = coerce(given, assumption.type)
    except ValueError:
        raise _bad_value(key, assumption, given) from None
    if assumption.type == COUNT and not (0 if key in _MAY_BE_ZERO else 1) <= value <= MAX_COUNT:
        raise _bad_value(key, assumption, given, "out of range")
    if assumption.type == "float" and not 0 <= value <= MAX_COUNT:
        raise _bad_value(key, assumption, given, "out of range")
    return value


def _bad_value(key: str, assumption: Assumption, given: Any, why: str = "not a value of this key") -> ConfigError:
    accepted = f"{describe(assumption.type)} ({assumption.meaning})"
    return ConfigError(problem=why, key=key, flag="--assume", value=given, accepted=accepted)


def _unknown(key: str) -> ConfigError:
    near = difflib.get_close_matches(key, ASSUMPTIONS, n=1, cutoff=0.5)
    return ConfigError(
        problem="`--assume` has no key of this name",
        key=key,
        flag="--assume",
        accepted=", ".join(ASSUMPTIONS),
        remedy=f"did you mean `{near[0]}`?" if near else "use --set for keys of the configuration",
    )
