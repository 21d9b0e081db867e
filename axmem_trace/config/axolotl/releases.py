"""The known releases of axolotl, and the choice of one of them for a run."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from axmem_trace.config.axolotl.behaviour import BEHAVIOURS, Behaviour
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Reason

OPTION = "--axolotl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One release: its behaviour, and the libraries that it requires (`METADATA` of its wheel, `Requires-Dist`)."""

    version: str
    pins: Mapping[str, str]
    """Distribution -> the versions that the release allows, such as `==5.20.1`."""
    behaviour: Behaviour

    def is_before(self, version: str) -> bool:
        """This release is older than `version`."""
        return _is_before(self.version, version)


@functools.cache
def _is_before(version: str, other: str) -> bool:
    """Parsing a version is slow, and every configuration asks the same."""
    return Version(version) < Version(other)


RELEASES: tuple[Release, ...] = (
    Release(
        version="0.19.0",
        pins={
            "torch": ">=2.11.0,<=2.13.0",
            "transformers": "==5.16.1",
            "peft": "==0.20.0",
            "accelerate": "==1.13.0",
            "bitsandbytes": "==0.50.2",
            "trl": "==1.9.0",
            "liger-kernel": "==0.8.1",
            "torchao": "==0.17.0",
        },
        behaviour=BEHAVIOURS["0.19.0"],
    ),
    Release(
        version="0.20.0",
        pins={
            "torch": ">=2.13.0,<=2.14.0",
            "transformers": "==5.17.0",
            "peft": "==0.21.0",
            "accelerate": "==1.15.0",
            "bitsandbytes": "==0.50.2",
            "trl": "==1.13.0",
            "liger-kernel": "==0.8.1",
            "torchao": "==0.18.0",
        },
        behaviour=BEHAVIOURS["0.20.0"],
    ),
    Release(
        version="0.21.0",
        pins={
            "torch": ">=2.13.0,<2.15.0",
            "transformers": "==5.20.1",
            "peft": "==0.21.2",
            "accelerate": "==1.15.0",
            "bitsandbytes": "==0.50.2",
            "trl": "==1.14.1",
            "liger-kernel": "==0.8.4",
            "torchao": "==0.18.0",
        },
        behaviour=BEHAVIOURS["0.21.0"],
    ),
)
"""From the oldest to the newest. PyPI has no other release of 0.19, 0.20 and 0.21."""
NEWEST = RELEASES[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The release whose rules apply, the reason for the choice, and notes for the report."""

    release: Release
    reason: Reason
    notes: tuple[Note, ...] = ()


def choose_release(asked: str) -> Chosen:
    """The release that is requested, else the axolotl that is installed with this package, else the newest known.

    Args:
        asked: `--axolotl`, a version or the beginning of one (`0.20`); empty: no release is requested.

    Raises:
        ConfigError: `asked` is no version.
    """
    found = "" if asked else installed_version("axolotl")
    meant = asked or found or NEWEST.version
    release = _nearest(meant)
    if asked:
        reason = Reason(value=release.version, text=f"`{OPTION} {asked}`", origin="override")
    elif found:
        reason = Reason(value=release.version, text=f"axolotl {found} is installed here", origin="derived")
    else:
        text = "the newest that is known, as no axolotl is installed here"
        reason = Reason(value=release.version, text=text, origin="default")
    if _is_it(release, meant):
        return Chosen(release=release, reason=reason)
    known = ", ".join(each.version for each in RELEASES)
    text = f"axolotl {meant} is not known ({known} are): the figures are those of {release.version}, the nearest"
    return Chosen(release=release, reason=reason, notes=(Note(kind="warning", key=OPTION, text=text),))


def installed_version(distribution: str) -> str:
    """The version of an installed distribution; empty if it is not installed. Nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _nearest(meant: str) -> Release:
    """The newest release that is not newer than the one meant, else the oldest.

    A development version of an unknown release (`0.22.0.dev0`, a checkout) is treated as the release before it. A
    development version of a known release is treated as that release.
    """
    version = _parse(meant)
    base = Version(version.base_version)
    older = [release for release in RELEASES if Version(release.version) <= base]
    within = [release for release in RELEASES if _is_it(release, meant)]
    return (within or older or list(RELEASES[:1]))[-1]


def _is_it(release: Release, meant: str) -> bool:
    """`0.20` means 0.20.0: parts of the version that are not given may have any value."""
    wanted = _parse(meant)
    if wanted.is_prerelease or wanted.is_postrelease:
        return False
    return Version(release.version).release[: len(wanted.release)] == wanted.release


def _parse(meant: str) -> Version:
    try:
        return Version(meant)
    except InvalidVersion:
        known = ", ".join(release.version for release in RELEASES)
        raise ConfigError(problem="this is no version", key=OPTION, value=meant, accepted=known) from None
