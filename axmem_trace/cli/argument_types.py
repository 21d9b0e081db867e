"""Types of the commands' arguments: each reads a text, or refuses it."""

from __future__ import annotations

import argparse


def list_of_counts(text: str) -> tuple[int, ...]:
    """Reads `1,2,4,8`. Each number is in the result once, in order.

    Raises:
        argparse.ArgumentTypeError: a part is not a whole number above 0.
    """
    return tuple(sorted({positive_int(part.strip()) for part in text.split(",")}))


def key_value(text: str) -> str:
    """An argument of the form `key=value`, unchanged.

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
    return _whole_number(text, at_least=0)


def positive_int(text: str) -> int:
    """1, 2, 3, ...

    Raises:
        argparse.ArgumentTypeError: `text` is anything else.
    """
    return _whole_number(text, at_least=1)


def _whole_number(text: str, *, at_least: int) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    if int(text) < at_least:
        raise argparse.ArgumentTypeError(f"at least {at_least} is needed, not {text}")
    return int(text)
