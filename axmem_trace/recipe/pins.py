"""Installed libraries whose version a release of axolotl does not require."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.specifiers import SpecifierSet
from packaging.version import Version


def find_other_libraries(pins: Mapping[str, str], installed: Mapping[str, str]) -> dict[str, str]:
    """Library -> what is required of it, for each installed version that is something else.

    A local part (`2.14.1+cpu`) does not count.

    >>> find_other_libraries({"torch": "<2.15", "peft": "==0.21.2"}, {"torch": "2.14.1+cpu", "peft": "0.21.3"})
    {'peft': '==0.21.2'}
    """
    return {
        name: pins[name]
        for name, version in installed.items()
        if name in pins and not SpecifierSet(pins[name]).contains(Version(version).public, prereleases=True)
    }
