"""Installed libraries whose versions differ from those that a release of axolotl requires."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from axmem_trace.recipe.run import Axolotl


def find_other_libraries(pins: Mapping[str, str], installed: Mapping[str, str]) -> dict[str, str]:
    """Library -> the required versions, for each library whose installed version is not one of them.

    The local part of a version (`+cpu` in `2.14.1+cpu`) is ignored.

    >>> find_other_libraries({"torch": "<2.15", "peft": "==0.21.2"}, {"torch": "2.14.1+cpu", "peft": "0.21.3"})
    {'peft': '==0.21.2'}
    """
    return {
        name: pins[name]
        for name, version in installed.items()
        if name in pins and not SpecifierSet(pins[name]).contains(Version(version).public, prereleases=True)
    }


def hint_at_pin(axolotl: Axolotl, transformers: str) -> str:
    """A sentence to add to advice if the run has another transformers than the installed one; else empty.

    >>> hint_at_pin(Axolotl(version="0.21.0", pins={"transformers": "==5.20.1"}), "5.24.0")
    '; axolotl 0.21.0 does not pin the installed transformers 5.24.0: a run has 5.20.1, with which this may work'
    """
    other = find_other_libraries(axolotl.pins, {"transformers": transformers}).get("transformers")
    if other is None:
        return ""
    release = f"axolotl {axolotl.version} does not pin the installed transformers {transformers}"
    return f"; {release}: a run has {other.removeprefix('==')}, with which this may work"
