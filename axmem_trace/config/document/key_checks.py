"""Check the type of every key, and report unknown keys and keys that are not modelled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from axmem_trace.config.axolotl.releases import NEWEST, Release
from axmem_trace.config.document.coercion import coerce, describe
from axmem_trace.config.document.draft import Draft, shortened
from axmem_trace.config.document.foreign_keys import ADVICE, nearest_key
from axmem_trace.config.document.foreign_names import SAME
from axmem_trace.config.document.key_table import Key, known_plugins, siblings
from axmem_trace.config.document.old_names import GONE_KEYS
from axmem_trace.notes import Notes, RefusalNote
from axmem_trace.recipe.lines import find_written

_WHOLE_PLUGINS = {
    "llm_compressor": ("llmcompressor", "more"),
    "hatchery": ("hatchery", "less"),
    "nemo_gym": ("nemo_gym_enabled", "more"),
}
"""Plugins that are active if they are listed, and the key that describes their effect."""
_OWN = "axolotl.integrations."
_UNKNOWN = "axolotl does not know `{}` and drops it"
_WRONG: Any = object()
"""Replaces a value that was refused."""
_DIRECTIONS = {"more": "needs more memory than shown", "less": "needs less memory than shown", "either": "differs"}


def find_plugins(names: object, release: Release = NEWEST) -> frozenset[str]:
    """Packages of the listed plugins: `axolotl.integrations.liger.LigerPlugin` -> `liger`.

    `liger.LigerPlugin` is the same (axolotl `integrations/base.py` `load_plugin`), and so is
    `axolotl.integrations.liger:LigerPlugin` in the releases that know this form.
    """
    listed = names if isinstance(names, (list, tuple)) else []
    full = [_full_plugin_name(name, release) for name in listed if isinstance(name, str)]
    return frozenset(
        package
        for package, known in known_plugins(release.version).items()
        for name in full
        if name == known or name.startswith(known.rpartition(".")[0] + ".")
    )


def _full_plugin_name(name: str, release: Release) -> str:
    if release.behaviour.plugins_may_have_a_colon:
        name = name.replace(":", ".", 1)
    known = known_plugins(release.version).get(name.partition(".")[0], "")
    return f"{_OWN}{name}" if known.startswith(_OWN) else name


def check_types(draft: Draft) -> None:
    """Converts each value to its type in the schema, and drops, with a note, what axolotl would drop.

    axolotl's pydantic model has no `extra="forbid"`. So validation accepts and removes an unknown key, and a key of a plugin
    that is not listed (`utils/config/__init__.py`, `validate_config`). A value of the wrong type is an error. If the key
    does not change memory, it is only a refusal, and axolotl's default is used.
    """
    for name in list(draft.values):
        value = draft.values[name]
        key = draft.keys.get(name)
        if key is None:
            _drop_unknown(draft, name)
            continue
        coerced = _coerced(draft, key, value, name)
        if coerced is _WRONG:
            del draft.values[name]
            continue
        draft.values[name] = coerced
        if isinstance(draft.values[name], dict):
            draft.values[name] = _check_nested(draft, name, draft.values[name])
        if not draft.is_live(name):
            draft.dropped[name] = draft.values.pop(name)
            if _moves_memory(key, draft.dropped[name]) or key.verdict == "modelled":
                _note_missing_plugin(draft, key)


def note_duplicates(draft: Draft, duplicates: Mapping[str, tuple[int, ...]]) -> None:
    """Warns about each key that is given twice in its block. As in axolotl (`cli/config.py`, `yaml.safe_load`), the last
    one counts."""
    for name, lines in duplicates.items():
        if draft.is_overridden(name):
            continue
        *earlier, last = lines
        overridden = f"line {earlier[0]} is" if len(earlier) == 1 else f"lines {', '.join(map(str, earlier))} are"
        text = f"`{name}` is given {len(lines)} times: {overridden} overridden by line {last}, which axolotl reads"
        draft.strict.append(draft.note("warning", name, text, line=last))


def note_not_modelled(draft: Draft) -> None:
    """Adds a note for each key whose value changes memory in a way that is not modelled, and for each such plugin."""
    for key, value in _given_keys(draft):
        if key.verdict == "not_modelled" and _moves_memory(key, value):
            text = f"`{key.name}: {shortened(value)}` is not in the figures: {say(key)}"
            draft.note("not_modelled", key.name, text, direction=key.direction or "either", touches=key.touches)
    for package in sorted(draft.plugins):
        if package in _WHOLE_PLUGINS:
            name, _ = _WHOLE_PLUGINS[package]
            if not draft.notes.of(name):
                text = f"the plugin `{draft.plugin_names[package]}` is not in the figures: {say(draft.keys[name])}"
                draft.note("not_modelled", "plugins", text, direction=draft.keys[name].direction or "either")
    for index, plugin in enumerate(draft.get("plugins") or []):
        if not find_plugins([plugin], draft.release):
            text = f"the plugin `{plugin}` is not one of axolotl's own: what it changes is not in the figures"
            line = draft.line(f"plugins.{index}") or draft.line("plugins")
            draft.note("not_modelled", "plugins", text, line=line, direction="either")


def say(key: Key) -> str:
    """Effect and direction of a key that is not modelled, in one sentence."""
    return f"{key.effect} (the run {_DIRECTIONS[key.direction or 'either']})"


def _given_keys(draft: Draft) -> Iterator[tuple[Key, Any]]:
    for name, value in draft.values.items():
        yield draft.keys[name], value
        if isinstance(value, Mapping):
            for inner, inner_value in value.items():
                nested = draft.keys.get(f"{name}.{inner}")
                if nested is not None:
                    yield nested, inner_value


def _moves_memory(key: Key, value: Any) -> bool:
    return value is not None and value is not False and value not in ([], {}, "", key.default, *key.quiet)


def _coerced(draft: Draft, key: Key, value: Any, name: str) -> Any:
    try:
        return coerce(value, key.type)
    except ValueError:
        accepted = describe(key.type)
    fails = value is not None and key.verdict != "none"
    if value is None:
        problem = f"axolotl refuses this: a value is missing, {accepted}"
        if key.default is not None:
            problem += f" (the figures are with its default, {shortened(key.default)})"
        draft.refuse(problem, name, remedy="give one, or remove the line")
    elif not fails:
        problem = f"axolotl refuses this: the value has the wrong type, accepted is {accepted}"
        draft.refuse(problem, name, remedy="correct the value")
    else:
        draft.fail(draft.error("the value has the wrong type", name, accepted=accepted, remedy="correct the value"))
    draft.spoiled[find_written(draft.written, name).key] = fails
    return _WRONG


def _check_nested(draft: Draft, prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """The same for the fields of a nested block, if the table lists them."""
    fields = {name for name in draft.keys if name.startswith(prefix + ".")}
    if not fields:
        return values
    checked: dict[str, Any] = {}
    for inner, value in values.items():
        name = f"{prefix}.{inner}"
        if prefix == "fsdp_config" and name not in fields:
            name = f"{prefix}.{str(inner).removeprefix('fsdp_')}"
        if name not in fields:
            _report_unknown(draft, f"{prefix}.{inner}", value)
            continue
        coerced = _coerced(draft, draft.keys[name], value, f"{prefix}.{inner}")
        if coerced is not _WRONG:
            nested = _check_nested(draft, name, coerced) if isinstance(coerced, dict) else coerced
            checked[name[len(prefix) + 1 :]] = nested
    return checked


def _drop_unknown(draft: Draft, name: Any) -> None:
    """Drops an unknown key. `name` may be a number or a boolean (`1:`, `yes:`)."""
    value = draft.dropped[str(name)] = draft.values.pop(name)
    _report_unknown(draft, str(name), value)


def _report_unknown(draft: Draft, name: str, value: Any) -> None:
    """Adds an error if `--set` gave the key, a warning if it may change memory, else a note."""
    nearest = nearest_key(name, siblings(name, draft.keys))
    advice = GONE_KEYS.get(name) or ADVICE.get(name) or ""
    if name in SAME:
        advice = f"axolotl's key for it is `{SAME[name]}`"
    slipped = bool(nearest) and not advice
    if slipped:
        advice = f"did you mean `{nearest}`?"
    if draft.is_overridden(name):
        remedy = advice or "check the spelling against axolotl's documentation"
        draft.fail(draft.error("axolotl knows no such key, and drops it", name, remedy=remedy))
        return
    gone = name in GONE_KEYS
    text = f"`{name}` was removed from axolotl and has no effect" if gone else _UNKNOWN.format(name)
    harmless = bool(advice) and not slipped and (not value or not _names_what_moves_memory(draft.keys, advice))
    note = draft.note("ignored" if harmless else "warning", name, f"{text}: {advice}" if advice else text)
    draft.strict.append(note)


def drop_notes_on_refused_keys(draft: Draft) -> None:
    """Removes the note that a key is dropped if the same key is also a reason why the run can't run."""
    refused = {note.key for note in draft.notes if isinstance(note, RefusalNote)}
    draft.notes = Notes(
        note for note in draft.notes if note.key not in refused or not note.text.startswith(_UNKNOWN.format(note.key))
    )


def _names_what_moves_memory(keys: Mapping[str, Key], advice: str) -> bool:
    named = [part.partition(":")[0].strip() for part in advice.split("`")[1::2]]
    return any(name in keys and keys[name].verdict != "none" for name in named)


def _note_missing_plugin(draft: Draft, key: Key) -> None:
    text = f"`{key.name}` has no effect: its plugin is not listed. Add `{draft.plugin_names[key.plugin]}` to `plugins:`"
    draft.note("warning", key.name, text)
