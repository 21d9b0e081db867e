"""Gradient checkpointing and offloading. Source: axolotl `utils/config/__init__.py` `normalize_config`,
`core/builders/base.py` `_configure_gradient_checkpointing`, `loaders/model.py`, `core/trainers/mixins/`; peft
`prepare_model_for_kbit_training`; torch `utils/checkpoint.py`."""

from __future__ import annotations

from typing import Any, Literal

from axmem_trace.config.derive.deepspeed import deepspeed_stage
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import BaseModel, Checkpointing
from axmem_trace.recipe.run import Offload

NON_REENTRANT_TYPES = ("gemma4", "gemma4_unified")


def derive_checkpointing(draft: Draft, base: BaseModel, *, kbit_preparation: bool) -> Checkpointing:
    """`Checkpointing` from the keys; `kbit_preparation` switches checkpointing on again, with other arguments."""
    enabled = bool(draft.get("gradient_checkpointing"))
    key = "gradient_checkpointing"
    draft.reason_of_key("checkpointing.enabled", enabled, key)
    layer_offloading = bool(draft.get("layer_offloading"))
    if not enabled:
        return Checkpointing(layer_offloading=layer_offloading)
    offload = _offload(draft)
    use_reentrant, why = _use_reentrant(draft, base, offload, kbit_preparation)
    given = draft.has("gradient_checkpointing_kwargs")
    reason_key = "gradient_checkpointing_kwargs" if given else key
    origin: Literal["config", "derived"] = "config" if given and why.startswith("`") else "derived"
    draft.reason("checkpointing.use_reentrant", use_reentrant, why, key=reason_key, origin=origin)
    if offload != "none":
        draft.reason("checkpointing.offload", offload, "`activation_offloading`", key="activation_offloading")
    selective, details = _selective(draft)
    kwargs = draft.sub("gradient_checkpointing_kwargs")
    kwargs.pop("use_reentrant", None)
    return Checkpointing(
        enabled=True,
        use_reentrant=use_reentrant,
        kwargs=kwargs,
        offload=offload,
        selective_save=selective,
        selective_details=details,
        selective_sees_varlen=draft.release.behaviour.selective_sees_varlen,
        layer_offloading=layer_offloading,
    )


def _offload(draft: Draft) -> Offload:
    value = draft.get("activation_offloading")
    names: dict[Any, Offload] = {
        True: "activations",
        "legacy": "legacy",
        "disk": "disk",
        "hidden_states": "hidden_states",
    }
    return names.get(value, "none")


def _use_reentrant(draft: Draft, base: BaseModel, offload: Offload, kbit: bool) -> tuple[bool, str]:
    """The variant that finally runs, and why. If several cases apply, the last one decides."""
    given = draft.get("gradient_checkpointing_kwargs")
    asked = given.get("use_reentrant") if isinstance(given, dict) else None
    if draft.get("selective_checkpointing") not in (None, False):
        return False, "selective checkpointing is non-reentrant"
    if base.model_type in NON_REENTRANT_TYPES:
        return False, f"axolotl forces non-reentrant checkpointing for {base.model_type}"
    if offload == "hidden_states":
        return bool(
            asked
        ), "`use_reentrant`" if asked is not None else "hidden-state offloading is non-reentrant by default"
    if offload != "none" and not draft.get("adapter"):
        return False, "activation offloading wraps each layer in non-reentrant checkpointing (full fine-tune)"
    if offload != "none" and kbit:
        return True, "peft's k-bit preparation switches it on last, with torch's default"
    if asked is not None:
        return bool(asked), "`use_reentrant`"
    by_default = draft.release.behaviour.reentrant_checkpointing
    if isinstance(given, dict) and (by_default or draft.has("unfrozen_parameters") or draft.get("rl")):
        return True, "`gradient_checkpointing_kwargs` without use_reentrant: torch's default"
    if draft.get("unfrozen_parameters"):
        return False, "axolotl's default for a partially frozen model"
    if draft.get("rl"):
        return False, "axolotl's default for preference training"
    if not by_default and deepspeed_stage(draft) == 3:
        return True, "axolotl's default under ZeRO-3"
    return by_default, f"the default of axolotl {draft.release.version}"


def _selective(draft: Draft) -> tuple[tuple[str, ...], dict[str, Any]]:
    value = draft.get("selective_checkpointing")
    if value is None or value is False:
        return (), {}
    details = dict(value) if isinstance(value, dict) else {}
    save = details.pop("save", None)
    if save is None or not (save or draft.release.behaviour.selective_empty_saves_nothing):
        save = ["attention"]
    draft.reason("checkpointing.selective_save", save, "`selective_checkpointing`", key="selective_checkpointing")
    return tuple(save), details
