"""Installed libraries that are not those that a release of axolotl requires."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from axmem_trace.recipe.run import Axolotl


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


def hint_at_pin(axolotl: Axolotl, transformers: str) -> str:
    """The end of an advice: the run has another transformers than the installed one; empty if it has the same.

    >>> hint_at_pin(Axolotl(version="0.21.0", pins={"transformers": "==5.20.1"}), "5.24.0")
    '; axolotl 0.21.0 does not pin the installed transformers 5.24.0: a run has 5.20.1, with which this may work'
    """
    other = find_other_libraries(axolotl.pins, {"transformers": transformers}).get("transformers")
    if other is None:
        return ""
    release = f"axolotl {axolotl.version} does not pin the installed transformers {transformers}"
    return f"; {release}: a run has {other.removeprefix('==')}, with which this may work"
