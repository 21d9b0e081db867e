"""Compares an axolotl release with this project's reference of axolotl, and prints the differences (the drift).

    python scripts/refresh_axolotl_schema.py [AXOLOTL] [--against VERSION] [--write]

AXOLOTL is a wheel, or a directory that contains the package (an unpacked wheel, a checkout). Without it, the installed
axolotl is read. Its source is parsed, but never imported: neither torch nor pydantic is needed.

These are compared with `scripts/axolotl/VERSION.json` (the same release, else the newest before it):

- the configuration's fields: new, gone, changed in type or default; and whether `keys.json` has each of them;
- the messages with which a configuration is refused;
- the functions in the files of axolotl that this package names as its source, by a fingerprint of their code.

`scripts/axolotl/verdicts.json` says how this project handles each difference between two releases. A difference that is
not in it is marked `no verdict`. `--write` writes the facts to `scripts/axolotl/VERSION.json`.

Exit code 0: no drift; 1: drift, which is printed; 2: there is no axolotl.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from axolotl_source import COMPUTED, REQUIRED, Fields, Source, read_source  # noqa: E402

from axmem_trace.config.document.key_table import Key, keys_of  # noqa: E402

REFERENCES = Path(__file__).resolve().parent / "axolotl"
KEYS = ROOT / "axmem_trace" / "config" / "document" / "keys.json"


@dataclass(frozen=True)
class Verdicts:
    """How this project handles the differences between releases."""

    messages: dict[str, str]
    """Text of a refusal -> what this project does about it."""
    functions: dict[str, dict[str, str]]
    """Release -> file, or `file::function` -> the same."""

    @classmethod
    def read(cls) -> Verdicts:
        """From `verdicts.json`."""
        content = json.loads((REFERENCES / "verdicts.json").read_text(encoding="utf-8"))
        return cls(**content)

    def of_function(self, release: str, name: str) -> str:
        """The verdict on the function itself, else on its file."""
        said = self.functions.get(release, {})
        return said.get(name) or said.get(name.partition("::")[0], "")


def known_releases() -> list[str]:
    """The releases with a reference, from the oldest to the newest."""
    return sorted((path.stem for path in REFERENCES.glob("[0-9]*.json")), key=Version)


def reference_for(version: str) -> str:
    """The same release, else the newest before it, else the oldest."""
    if not version:
        return known_releases()[-1]
    before = [each for each in known_releases() if Version(each) <= Version(version)]
    return before[-1] if before else known_releases()[0]


def read_reference(version: str) -> Source:
    """The facts of a release, as they were when its differences got their verdicts."""
    content = json.loads((REFERENCES / f"{version}.json").read_text(encoding="utf-8"))
    return Source(version=version, **content)


def find_drift(here: Source, before: Source, verdicts: Verdicts) -> list[str]:
    """One line for each difference."""
    keys = dict(keys_of(here.version or before.version))
    return [
        *field_drift(here.fields, before.fields, keys),
        *_message_drift(here, before, verdicts),
        *_function_drift(here, before, verdicts),
    ]


def field_drift(fields: Fields, reference: Fields, keys: dict[str, Key]) -> list[str]:
    """Fields that are new, removed or changed; and fields that are missing or different in `keys.json`."""
    lines = []
    for name in sorted({*fields, *reference, *keys}):
        here, before, key = fields.get(name), reference.get(name), keys.get(name)
        if here is None:
            lines += [f"gone: {name}"] if before else [f"in {KEYS.name} alone: {name}"]
            continue
        if before is None:
            lines += [f"new: {name}: {here['type']} = {here['default']!r}"]
        elif before["type"] != here["type"]:
            lines += [f"type of {name}: {before['type']} -> {here['type']}"]
        if before is not None and COMPUTED not in (here["default"], before["default"]) and _differ(here, before):
            lines += [f"default of {name}: {before['default']!r} -> {here['default']!r}"]
        if key is None:
            lines += [f"no verdict: {name}: add it to {KEYS.relative_to(ROOT)}"]
        elif not _says_default(key, here):
            lines += [f"default of {name} in {KEYS.name}: {key.default!r}, axolotl's is {here['default']!r}"]
    return lines


def _differ(here: dict[str, Any], before: dict[str, Any]) -> bool:
    return bool(here["default"] != before["default"])


def _says_default(key: Key, here: dict[str, Any]) -> bool:
    """True if the table has axolotl's default, or if the field has no literal default in axolotl (required or
    computed)."""
    default = here["default"]
    return default in (REQUIRED, COMPUTED, key.default) or (default in ({}, []) and key.default is None)


def _message_drift(here: Source, before: Source, verdicts: Verdicts) -> list[str]:
    return [
        f"{'refuses' if text in here.messages else 'no longer refuses'}: "
        f"{(here.messages.get(text) or before.messages[text])}: {text!r}: {verdicts.messages.get(text) or 'no verdict'}"
        for text in sorted({*here.messages, *before.messages})
        if (text in here.messages) != (text in before.messages)
    ]


def _function_drift(here: Source, before: Source, verdicts: Verdicts) -> list[str]:
    lines = []
    for name in sorted({*here.functions, *before.functions}):
        new, old = here.functions.get(name), before.functions.get(name)
        if new != old:
            what = "changed" if new and old else "new" if new else "gone"
            lines.append(f"code {what}: {name}: {verdicts.of_function(here.version, name) or 'no verdict'}")
    return lines


@cache
def cited_files() -> frozenset[str]:
    """Endings of the paths that this package's source texts name: `kernels/lora.py`, each of
    `kernels/{dora,quantize}.py`."""
    sources = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "axmem_trace").rglob("*.py")))
    named = re.findall(r"[\w/]*(?:\{[\w,/*\s]+\})?[\w/]*\.py", "\n".join(sources))
    return frozenset(each for name in named for each in _without_braces(name))


def _without_braces(name: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", name)
    if found is None:
        return [name]
    return [f"{name[: found.start()]}{part.strip()}{name[found.end() :]}" for part in found[1].split(",")]


def _is_cited(file: str) -> bool:
    parts = file.split("/")
    return any("/".join(parts[start:]) in cited_files() for start in range(max(1, len(parts) - 1)))


def only_cited(source: Source) -> Source:
    """The same facts with only the functions of cited files."""
    functions = {name: code for name, code in source.functions.items() if _is_cited(name.partition("::")[0])}
    return Source(version=source.version, fields=source.fields, messages=source.messages, functions=functions)


def write_reference(source: Source) -> Path:
    """Writes one line for each entry, so that a change of one entry is a diff of one line."""
    blocks = []
    for name in ("fields", "messages", "functions"):
        entries: dict[str, Any] = getattr(source, name)
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entries[key])}" for key in sorted(entries))
        blocks.append(f' "{name}": {{\n{lines}\n }}')
    path = REFERENCES / f"{source.version}.json"
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Prints the drift; the module's docstring explains the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axolotl", type=Path, nargs="?", help="a wheel, or a directory that holds the package")
    parser.add_argument("--against", metavar="VERSION", help="compare with this release instead")
    parser.add_argument("--write", action="store_true", help="make this a reference")
    options = parser.parse_args(arguments)
    try:
        here = only_cited(read_source(options.axolotl))
    except FileNotFoundError as error:
        print(error)
        return 2
    before = read_reference(options.against or reference_for(here.version))
    drift = find_drift(here, before, Verdicts.read())
    counted = f"{len(here.fields)} fields, {len(here.messages)} messages, {len(here.functions)} functions"
    print("\n".join(drift) or f"no drift from {before.version}: {counted} of axolotl {here.version or '(unknown)'}")
    if options.write:
        print(f"written: {write_reference(here).relative_to(ROOT)}")
    return 1 if drift else 0


if __name__ == "__main__":
    raise SystemExit(main())
