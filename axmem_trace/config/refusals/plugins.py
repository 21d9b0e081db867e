"""Names of plugins that cannot be loaded. Source: axolotl `integrations/base.py` `load_plugin`, `PluginManager.register`."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft

_OWN = "axolotl.integrations."


def refuse_plugins(draft: Draft) -> None:
    """Reports a name without a class, and a class that one of axolotl's own packages does not have.

    Warns about a plugin that can only be checked on the training machine.
    """
    for index, name in enumerate(draft.get("plugins") or []):
        if isinstance(name, str):
            _refuse_plugin(draft, name, f"plugins.{index}" if draft.line(f"plugins.{index}") else "plugins")


def _refuse_plugin(draft: Draft, name: str, key: str) -> None:
    dotted = name.replace(":", ".", 1) if draft.release.behaviour.plugins_may_have_a_colon else name
    package, _, class_name = dotted.removeprefix(_OWN).partition(".")
    known = draft.plugin_names.get(package)
    problem = ""
    if "." not in dotted:
        problem = "the name of a plugin must be a module and a class, as in `module.Class`"
    elif ":" in dotted:
        problem = f"axolotl {draft.release.version} does not take `module:Class`"
    elif known and class_name.rpartition(".")[2] != known.rpartition(".")[2]:
        problem = f"there is no such plugin: did you mean `{known}`?"
    if problem:
        draft.refuse(
            f"axolotl fails on {name!r}: {problem} (the figures are without it)", key, remedy="correct the name"
        )
    if not known and draft.release.behaviour.missing_plugin_stops:
        text = f"axolotl {draft.release.version} fails if `{name}` cannot be imported; older releases only warned"
        draft.note("warning", key, text)
