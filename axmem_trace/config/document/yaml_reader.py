"""Read YAML text: plain values, and the line of every key. The format is YAML 1.1, as in axolotl (`yaml.safe_load`).

A configuration may come from an untrusted source. So the bytes, the nesting and the number of nodes after the expansion of
aliases are limited before any value is built. Each problem becomes a `ConfigError` with the line.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import yaml

from axmem_trace.errors import ConfigError
from axmem_trace.files import shortened_path

STANDARD_INPUT = ("-", "/dev/stdin")
MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000
"""The limit after aliases are expanded."""

_MERGE_TAG = "tag:yaml.org,2002:merge"
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A configuration as read: plain values, and the line of each."""

    name: str
    """The path as given, or `<config>`."""
    values: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    """1-based line of each key, by dotted path; items of a list by their index (`datasets.0.path`)."""
    duplicates: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Keys that are given more than once in their block -> their lines. As in `yaml.safe_load`, the last one counts."""
    directory: Path | None = None
    """The folder of the file: relative paths in the configuration may start there."""
    text: str = ""
    """The YAML itself; empty for a mapping."""


def read_document(config: str | Path | Mapping[str, Any]) -> Document:
    """Reads a file (`str` or `Path`) or standard input (`-`), or uses a mapping unchanged.

    Raises:
        ConfigError: the file does not exist, is not YAML or not a mapping, or exceeds a limit above.
    """
    if isinstance(config, Mapping):
        _refuse_deep_values(config, depth=0, budget=[MAX_NODES])
        return Document(name="<config>", values={**config})
    if str(config) in STANDARD_INPUT:
        return parse_document(_read_standard_input(), name="<stdin>", directory=Path())
    path = Path(config)
    return parse_document(_read_text(path), name=str(config), directory=path.parent)


def parse_document(text: str, *, name: str = "<config>", directory: Path | None = None) -> Document:
    """YAML text to a `Document`."""
    root = _compose(text, name)
    if root is None:
        raise ConfigError(
            problem="the configuration is empty",
            file=name,
            remedy="write at least base_model, as in `base_model: meta-llama/Llama-3.1-8B`",
        )
    if not isinstance(root, yaml.MappingNode):
        kind = "list" if isinstance(root, yaml.SequenceNode) else "single value"
        raise ConfigError(
            problem=f"the configuration is a {kind}, not a mapping of keys to values",
            file=name,
            line=root.start_mark.line + 1,
            accepted="lines such as `base_model: meta-llama/Llama-3.1-8B`",
        )
    inspector = _Inspector(name)
    inspector.visit(root, path="", depth=1)
    duplicates = {key: tuple(lines) for key, lines in inspector.duplicates.items()}
    return Document(
        name=name,
        values=_construct(root, name),
        lines=inspector.lines,
        duplicates=duplicates,
        directory=directory,
        text=text,
    )


def parse_value(text: str) -> Any:
    """Parses one YAML value, which follows `key=` on a command line: `2`, `true`, `[q_proj, v_proj]`, `2e-4`.

    Raises:
        ConfigError: the text is not YAML, or exceeds a limit.
    """
    node = _compose(text, "")
    if node is None:
        return None
    _Inspector("").visit(node, path="", depth=1)
    return _construct(node, "")


_read_before: tuple[TextIO, bytes] | None = None
"""The stream and its content. A stream can be read only once, but a command may estimate a configuration several times."""


def _read_standard_input() -> str:
    global _read_before
    if _read_before is None or _read_before[0] is not sys.stdin:
        binary = getattr(sys.stdin, "buffer", None)  # in a test or a notebook the stream may have no bytes, only text
        content = binary.read(MAX_BYTES + 1) if binary is not None else sys.stdin.read().encode()
        _read_before = (sys.stdin, content)
    return _decode(_read_before[1], "<stdin>")


def _read_text(path: Path) -> str:
    """The content of a file, or of a pipe (`/dev/stdin`, or `<(...)` in a shell)."""
    name = shortened_path(path)
    try:
        if path.is_dir():
            raise _unreadable("this is a directory, not a file", name)
        if not path.exists():
            raise _unreadable("no such file", name, remedy="check the path")
        with path.open("rb") as stream:
            return _decode(stream.read(MAX_BYTES + 1), name)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise _unreadable(f"the file cannot be read: {why}", name) from None


def _decode(content: bytes, name: str) -> str:
    if len(content) > MAX_BYTES:
        raise _unreadable(f"the file is too large; a configuration has at most {MAX_BYTES} bytes", name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {error.object[error.start]:#04x}"
        raise _unreadable(f"the file is not UTF-8 text ({byte})", name) from None


def _unreadable(
    problem: str, name: str, remedy: str = "give the path of an axolotl YAML file, or - for standard input"
) -> ConfigError:
    return ConfigError(problem=problem, file=name, remedy=remedy)


def _compose(text: str, name: str) -> yaml.Node | None:
    """Text to YAML's node graph, where aliases are still shared."""
    try:
        _refuse_depth(text, name)
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _syntax_error(error, name) from error


def _refuse_depth(text: str, name: str) -> None:
    """Refuses too deep nesting and too many nodes. It reads a stream of events, so it is safe before any recursive code."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader), start=1):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > 2 * MAX_NODES:
            what = f"nested deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else "too large"
            line = event.start_mark.line + 1 if event.start_mark else 0
            raise ConfigError(problem=f"the configuration is {what}", file=name, line=line)


def _syntax_error(error: yaml.YAMLError, name: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    context = getattr(error, "context", None)
    remedy = "fix the YAML"
    if "\\t" in str(problem):
        remedy = "indent with spaces: YAML allows no tabs there"
    elif "expected a single document" in str(context):
        problem, context, remedy = "the file has several documents", "", "keep one document: remove the `---` line"
    return ConfigError(
        problem=f"not valid YAML: {problem}" + (f" ({context})" if context else ""),
        file=name,
        line=mark.line + 1 if mark else 0,
        remedy=remedy,
    )


@dataclass
class _Inspector:
    """Visits each node as often as aliases repeat it: counts nodes, refuses cycles, records lines and duplicates."""

    name: str
    lines: dict[str, int] = field(default_factory=dict)
    num_nodes: int = 0
    duplicates: dict[str, list[int]] = field(default_factory=dict)

    def visit(self, node: yaml.Node, *, path: str, depth: int) -> None:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(
                problem=f"aliases expand to more than {MAX_NODES} values or {MAX_DEPTH} levels",
                file=self.name,
                line=node.start_mark.line + 1,
                remedy="write the values out, or drop the anchors that refer to each other",
            )
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[_join(path, str(index))] = item.start_mark.line + 1
                self.visit(item, path=_join(path, str(index)), depth=depth + 1)
        elif isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, path, depth)

    def _visit_mapping(self, node: yaml.MappingNode, path: str, depth: int) -> None:
        seen: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE_TAG:
                merged.append(value)
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(problem="a key must be a word, not a list or a mapping", file=self.name, line=line)
            name = _join(path, key.value)
            if key.value in seen:
                self._forget(name)
                self.duplicates.setdefault(name, [seen[key.value]]).append(line)
            seen[key.value] = line
            self.lines[name] = line
            self.visit(value, path=name, depth=depth + 1)
        for value in merged:
            self._visit_merged(value, path, depth)

    def _forget(self, name: str) -> None:
        """Deletes the records of a block: of two blocks with the same name, the first has no effect."""
        for places in (self.lines, self.duplicates):
            for inner in [key for key in places if key.startswith(name + ".")]:
                del places[inner]

    def _visit_merged(self, value: yaml.Node, path: str, depth: int) -> None:
        """`<<: *anchor`: records the lines of the anchor's keys, except keys that the mapping itself sets."""
        inner = _Inspector(self.name, num_nodes=self.num_nodes)
        merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for node in merged:
            inner.visit(node, path=path, depth=depth + 1)
        self.num_nodes = inner.num_nodes
        for key, line in inner.lines.items():
            self.lines.setdefault(key, line)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _construct(node: yaml.Node, name: str) -> Any:
    """Converts nodes to values with the safe constructor: plain types only."""
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _syntax_error(error, name) from error
    except (ValueError, OverflowError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(problem=f"a value cannot be read: {error}", file=name, remedy="quote the value") from error
    finally:
        loader.dispose()


def _refuse_deep_values(value: Any, *, depth: int, budget: list[int]) -> None:
    """Checks the limits for a mapping that did not come from YAML."""
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise ConfigError(problem=f"the configuration is nested deeper than {MAX_DEPTH} levels or too large")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if depth == 0 and not isinstance(key, str):
                raise ConfigError(problem="keys must be text", value=key)
            _refuse_deep_values(item, depth=depth + 1, budget=budget)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_deep_values(item, depth=depth + 1, budget=budget)
