"""The exceptions that reach a user, and the exit code that each one means.

    AxmemError                 anything the command line prints as one message, never as a traceback
    └── ConfigError            the configuration cannot be estimated            exit code 2

A run that can be estimated but can't run has a report with `refusals`; the command line's exit code is 2 as well.

A bug in this package is not an `AxmemError`: its traceback is shown, and the exit code is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial

EXIT_ESTIMATED = 0
EXIT_BUG = 1
EXIT_CONFIG = 2
EXIT_DOES_NOT_FIT = 3
EXIT_CANNOT_SAY = 4


def in_one_line(text: object, most: int = 400) -> str:
    """`text` on one line. If it is longer than `most` characters, the middle is left out: there, libraries print
    complete modules. The accepted values come after them.

    >>> in_one_line("Target module Block(" + "(layer): Linear() " * 99 + ") is not supported", most=90)
    'Target module Block((layer): [...] (layer): Linear() (layer): Linear() ) is not supported'
    """
    words = str(text).split()
    if len(" ".join(words)) <= most:
        return " ".join(words)
    head = _fitting(words, most // 3)
    tail = _fitting(words[::-1], most - most // 3)[::-1]
    return " ".join((*head, "[...]", *tail))


def _fitting(words: list[str], most: int) -> list[str]:
    """The first words that are together at most `most` characters long, with the spaces between them."""
    kept: list[str] = []
    for word in words:
        most -= len(word) + 1
        if most < -1:
            break
        kept.append(word)
    return kept


class AxmemError(Exception):
    """An error that the user can correct. `exit_code` is the exit code of the command."""

    exit_code = EXIT_CONFIG


@dataclass(eq=False)
class ConfigError(AxmemError):
    """The configuration cannot be estimated as it is.

    Args:
        problem: what is wrong, in one sentence, in the user's words.
        file: the configuration file, if known.
        line: 1-based line of the key in that file, if known.
        key: dotted key, if one key is the cause.
        value: the value that was found.
        accepted: the values that are accepted.
        remedy: what the user can do about it.
        flag: the command-line option that set the key, such as `--set`; then there is no line.
        others: further reasons, which are independent of this one.
    """

    problem: str
    file: str = ""
    line: int = 0
    key: str = ""
    value: object = None
    accepted: str = ""
    remedy: str = ""
    details: tuple[str, ...] = field(default=())
    flag: str = ""
    others: tuple[ConfigError, ...] = field(default=())

    def __reduce__(self) -> tuple[object, ...]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return partial(type(self), **values), ()

    def __str__(self) -> str:
        if not self.others:
            return self.describe()
        every = (self, *self.others)
        head = f"{len(every)} reasons why this can't run" + (f" ({self.file})" if self.file else "")
        return "\n".join((head, *(f"{number}. {each.describe()}" for number, each in enumerate(every, start=1))))

    def describe(self) -> str:
        """Only this reason, on several lines."""
        place = self.flag or self.file + (f":{self.line}" if self.file and self.line else "")
        key = f"{place} {self.key}" if self.flag else self.key
        head = ": ".join(part for part in ("" if self.flag else place, key, self.problem) if part)
        lines = [head]
        if self.key and self.value is not None:
            lines.append(f"  value: {self.value!r}")
        if self.accepted:
            lines.append(f"  accepted: {self.accepted}")
        lines += [f"  {detail}" for detail in self.details]
        if self.remedy:
            lines.append(f"  what to do: {self.remedy}")
        return "\n".join(lines)
