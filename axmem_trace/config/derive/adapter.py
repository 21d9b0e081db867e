"""The adapter. Source: axolotl `loaders/adapter.py` `_build_peft_lora_config`, `load_lora`, `load_llama_adapter`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from axmem_trace.config.derive.relora import restart_steps
from axmem_trace.config.derive.saved_adapter import SavedAdapter, read_saved_adapter
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Adapter


def derive_adapter(draft: Draft) -> Adapter:
    """`Adapter` from the keys.

    Raises:
        ConfigError: a key that peft needs is missing (`lora_r`, targets).
    """
    kind = draft.get("adapter")
    if not kind:
        _note_orphans(draft)
        draft.reason("adapter.kind", "none", "no `adapter`: a full fine-tune", origin="default")
        return Adapter()
    draft.reason("adapter.kind", kind, "`adapter`", key="adapter")
    if kind == "llama-adapter":
        return _llama_adapter(draft)
    if kind not in ("lora", "qlora"):
        text = f"`adapter: {kind}` is built by a plugin: estimated as a LoRA of the same rank and targets"
        draft.note("not_modelled", "adapter", text, direction="either")
    return _lora(draft, "qlora" if kind == "qlora" else "lora", read_saved_adapter(draft))


def _lora(draft: Draft, kind: Literal["lora", "qlora"], saved: SavedAdapter) -> Adapter:
    rank = _rank(draft, kind, saved)
    adapter = _with_targets(draft, saved, Adapter(kind=kind, rank=rank))
    adapter = replace(adapter, dtype=_dtype(draft), alpha=_alpha(draft, saved, rank), dropout=_dropout(draft, saved))
    adapter = _with_variant(draft, saved, _with_layers(draft, saved, adapter))
    return replace(
        adapter,
        from_file=draft.has("lora_model_dir"),
        file_tensor_bytes=saved.tensor_bytes,
        on_cpu=bool(draft.get("lora_on_cpu")),
        loraplus=bool(draft.get("loraplus_lr_ratio")),
        relora_steps=restart_steps(draft),
        relora_cpu_offload=bool(draft.get("relora_cpu_offload")),
        relora_prunes_at_random=draft.get("relora_prune_method") in ("random", "reset"),
    )


def _rank(draft: Draft, kind: str, saved: SavedAdapter) -> int:
    rank = saved.setting(draft, "r", "lora_r")
    if rank is None and not saved.governs:
        raise draft.error(
            f"`adapter: {kind}` needs `lora_r`: peft has no rank to work with",
            "lora_r",
            remedy="set lora_r, such as 16",
        )
    rank = 8 if rank is None else rank
    if not isinstance(rank, int) or rank < 1:
        raise draft.error("peft needs a rank of at least 1", "lora_r", accepted="a whole number above 0")
    return rank


def _with_targets(draft: Draft, saved: SavedAdapter, adapter: Adapter) -> Adapter:
    targets = saved.setting(draft, "target_modules", "lora_target_modules") or ()
    parameters = saved.setting(draft, "target_parameters", "lora_target_parameters") or ()
    linear = bool(draft.get("lora_target_linear")) and not saved.governs
    if not (targets or parameters or linear or saved.governs):
        raise draft.error(
            f"`adapter: {adapter.kind}` has no target modules: peft fails",
            "lora_target_modules",
            remedy="set `lora_target_linear: true`, or list lora_target_modules",
        )
    return replace(
        adapter,
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
        target_linear=linear,
        target_parameters=(parameters,) if isinstance(parameters, str) else tuple(parameters),
    )


def _dtype(draft: Draft) -> Literal["autocast", "base"]:
    autocast = draft.get("peft_autocast_adapter_dtype") is not False
    text = "peft keeps adapters in fp32 (its default)" if autocast else "`peft_autocast_adapter_dtype`"
    dtype: Literal["autocast", "base"] = "autocast" if autocast else "base"
    draft.reason("adapter.dtype", dtype, text, key="peft_autocast_adapter_dtype")
    return dtype


def _alpha(draft: Draft, saved: SavedAdapter, rank: int) -> int:
    alpha = saved.setting(draft, "lora_alpha", "lora_alpha")
    if alpha is None:
        problem = "the run fails: peft needs `lora_alpha`, which is not set"
        draft.refuse(problem, "lora_alpha", remedy="add `lora_alpha: 16`, for example")
        return rank
    return int(alpha)


def _with_layers(draft: Draft, saved: SavedAdapter, adapter: Adapter) -> Adapter:
    """The layers that have the adapter, the rank of each, and the modules that train fully."""
    return replace(
        adapter,
        modules_to_save=tuple(_as_list(saved.setting(draft, "modules_to_save", "lora_modules_to_save"))),
        rank_pattern=_pattern(draft, saved, "rank_pattern"),
        alpha_pattern=_pattern(draft, saved, "alpha_pattern"),
        layers_to_transform=tuple(_as_list(saved.setting(draft, "layers_to_transform", "peft_layers_to_transform"))),
        layers_pattern=tuple(_as_list(saved.setting(draft, "layers_pattern", "peft_layers_pattern"))),
        layer_replication=_replication(draft, saved),
        trainable_token_indices=_token_indices(draft, saved),
        exclude_modules=_names(saved.config.get("exclude_modules")),
    )


def _with_variant(draft: Draft, saved: SavedAdapter, adapter: Adapter) -> Adapter:
    """DoRA, scaling, initialisation, bias."""
    return replace(
        adapter,
        dora=bool(saved.setting(draft, "use_dora", "peft_use_dora")),
        rslora=bool(saved.setting(draft, "use_rslora", "peft_use_rslora")),
        fan_in_fan_out=bool(saved.setting(draft, "fan_in_fan_out", "lora_fan_in_fan_out")),
        ensure_weight_tying=bool(saved.setting(draft, "ensure_weight_tying", "peft_ensure_weight_tying")),
        init=_init(draft, saved),
        loftq_bits=_loftq_bits(draft),
        bias=str(saved.config.get("bias", "none")),
    )


def _dropout(draft: Draft, saved: SavedAdapter) -> float:
    dropout = float(saved.setting(draft, "lora_dropout", "lora_dropout") or 0.0)
    if not 0 <= dropout < 1:
        raise draft.error("a dropout is a probability", "lora_dropout", accepted="a number from 0 to below 1")
    return dropout


def _init(draft: Draft, saved: SavedAdapter) -> str:
    """`peft_init_lora_weights` if it is a name, else LoftQ if its block is given. A saved adapter has its own."""
    if saved.governs:
        named = saved.config.get("init_lora_weights")
        return named if isinstance(named, str) else ""
    named = draft.get("peft_init_lora_weights")
    loftq = isinstance(draft.sub("peft").get("loftq_config"), Mapping)
    if named == "loftq" and not loftq:
        remedy = "add `peft: {loftq_config: {loftq_bits: 4}}`"
        raise draft.error("peft needs a loftq_config for this initialisation", "peft_init_lora_weights", remedy=remedy)
    if isinstance(named, str) and named:
        return named
    return "loftq" if loftq and _loftq_bits(draft) else ""


def _loftq_bits(draft: Draft) -> int:
    loftq = draft.sub("peft").get("loftq_config")
    return int(loftq.get("loftq_bits", 4) or 0) if isinstance(loftq, Mapping) else 4


def _pattern(draft: Draft, saved: SavedAdapter, name: str) -> dict[str, int]:
    key = f"lora_{name}"
    given = saved.setting(draft, name, key)
    given = given if isinstance(given, Mapping) else {}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise draft.error(f"{name!r} has no whole number above 0", key, accepted="a mapping of names to ranks")
    return {str(name): int(value) for name, value in given.items()}


def _names(value: object) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else tuple(_as_list(value))


def _as_list(value: object) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _replication(draft: Draft, saved: SavedAdapter) -> tuple[tuple[int, int], ...]:
    pairs = saved.setting(draft, "layer_replication", "peft_layer_replication") or []
    checked = []
    for pair in pairs:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, int) for part in pair)):
            raise draft.error(
                "each item is a pair of layer numbers", "peft_layer_replication", accepted="[[0, 4], [2, 5]]"
            )
        checked.append((pair[0], pair[1]))
    return tuple(checked)


def _token_indices(draft: Draft, saved: SavedAdapter) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    given = saved.setting(draft, "trainable_token_indices", "peft_trainable_token_indices") or ()
    if isinstance(given, Mapping):
        return {str(name): tuple(_as_list(indices)) for name, indices in given.items()}
    return tuple(given)


def _llama_adapter(draft: Draft) -> Adapter:
    """axolotl reads `peft_adapter.layers` and `.len`, but 0.19 has no field for them: validation drops them."""
    given = draft.dropped.get("peft_adapter")
    layers = given.get("layers") if isinstance(given, Mapping) else None
    length = given.get("len") if isinstance(given, Mapping) else None
    if not isinstance(layers, int) or not isinstance(length, int):
        raise draft.error(
            "axolotl 0.19 cannot start `llama-adapter`: it reads `peft_adapter`, which is no longer a field",
            "adapter",
            remedy="use `adapter: lora`; or give `peft_adapter: {layers: 30, len: 10}` to estimate an older axolotl",
        )
    problem = "axolotl 0.19 drops `peft_adapter` and then fails (the figures are for an axolotl that keeps it)"
    draft.refuse(problem, "adapter", remedy="use `adapter: lora`")
    return Adapter(kind="llama-adapter", adapter_layers=layers, adapter_len=length)


def _note_orphans(draft: Draft) -> None:
    """Warns about LoRA keys in a full fine-tune, if the user seems to expect an effect."""
    keys = [key for key in ("lora_r", "lora_target_modules", "lora_target_linear") if draft.get(key)]
    if keys:
        text = f"`{keys[0]}` has no effect: without `adapter: lora` this is a full fine-tune"
        draft.note("warning", keys[0], text)
