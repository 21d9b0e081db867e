"""Which parameters train in a full fine-tune, and which vision and audio towers stay frozen."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes, RefusalNote
from axmem_trace.recipe.recipe import Recipe

MULTIMODAL_PARTS = frozenset(
    """
    vision_tower vision_model vision_encoder embed_vision multi_modal_projector visual audio_tower audio_model
    embed_audio
    """.split()
)
"""Name components that `freeze_mm_modules` freezes (axolotl `utils/freeze.py`)."""
_RANGE = re.compile(r"(.+)\[\d*(?::\d*)?\]")


def freeze_parameters(model: Any, recipe: Recipe, notes: Notes) -> None:
    """Freeze as axolotl does after loading: `unfrozen_parameters`, then multimodal parts; LISA and Spectrum.

    Source: axolotl `train.py` `setup_model_and_tokenizer`, `utils/freeze.py`, `utils/callbacks/lisa.py`,
    `integrations/spectrum`.

    Raises:
        ConfigError: a pattern of `unfrozen_parameters` is not a regular expression, or no parameter trains.
    """
    freezing = recipe.freezing
    patterns = freezing.unfrozen
    if freezing.spectrum_top_fraction and not patterns:
        patterns = _spectrum_patterns(model, freezing.spectrum_top_fraction, notes)
    if patterns:
        freeze_all_but(model, patterns)
        if any(part in pattern for pattern in patterns for part in ("lm_head", "embed_tokens")):
            model.enable_input_require_grads()
    if recipe.model.freeze_multimodal:
        _freeze_multimodal(model)
    if freezing.lisa_layers:
        _freeze_for_lisa(model, freezing.lisa_layers, notes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        if not getattr(model, "_require_grads_hooks", None):
            raise _nothing_trains(model, recipe)
        notes.append(_note_nothing_trains(model, recipe))


def freeze_all_but(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freeze every parameter unless a pattern matches the beginning of its name.

    As in axolotl, a dot in a pattern means a dot; only before `+` it means any character. A range at the end
    (`name[0:1000]`) limits the update by a gradient hook, but not the memory: the whole parameter has a gradient and an
    optimizer state.
    """
    compiled = [_compile(pattern) for pattern in patterns]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(pattern.match(name) for pattern in compiled) and parameter.is_floating_point())


def _compile(pattern: str) -> re.Pattern[str]:
    ranged = _RANGE.fullmatch(pattern)
    name = ranged[1] if ranged else pattern
    try:
        return re.compile(re.sub(r"\.(?!\+)", r"\.", name))
    except re.error as error:
        raise ConfigError(
            problem=f"a pattern is not a regular expression: {error}",
            key="unfrozen_parameters",
            value=pattern,
            remedy="write names of the model's parameters, such as ^lm_head.weight$ or model.layers.2[0-9]+.mlp",
        ) from None


def _freeze_multimodal(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not MULTIMODAL_PARTS.isdisjoint(name.split(".")):
            parameter.requires_grad_(False)


def _freeze_for_lisa(model: Any, num_layers: int, notes: Notes) -> None:
    """Freeze decoder layers. LISA freezes all except `num_layers` random ones before the first step; here the first ones
    train."""
    layers = next((m for n, m in model.named_modules() if n.endswith("model.layers") or n == "transformer.h"), None)
    if not isinstance(layers, nn.ModuleList):
        text = (
            "the run fails: LISA looks for `model.layers`, which this model does not have (the figures are without it)"
        )
        notes.append(RefusalNote(key="lisa_n_layers", text=text, remedy="remove the lisa_* keys"))
        return
    for layer in list(layers)[num_layers:]:
        layer.requires_grad_(False)
    text = (
        f"the first {min(num_layers, len(layers))} of {len(layers)} layers replace LISA's random ones of each interval. "
        "Layers of earlier intervals keep their optimizer states, which are not in the figures"
    )
    notes.append(Note(kind="assumed", key="lisa_n_layers", text=text))


def _spectrum_patterns(model: nn.Module, fraction: float, notes: Notes) -> tuple[str, ...]:
    """Spectrum's selection: the given fraction of each kind of linear layer, the embedding and the head.

    A file that the plugin downloads says which layers have the best signal-to-noise ratio. All layers of one kind have the
    same shape, so the bytes do not depend on it.
    """
    by_kind: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.search(r"\.\d+\.", name):
            by_kind.setdefault(re.split(r"\.\d+\.", name)[-1], []).append(name)
    chosen = [name for names in by_kind.values() for name in names[: int(len(names) * fraction)]]
    text = f"the first {fraction:g} of the layers of each kind replace those with the best signal-to-noise ratio"
    notes.append(Note(kind="assumed", key="spectrum_top_fraction", text=text))
    return ("^lm_head.weight$", "^model.embed_tokens.weight$", *(f"^{re.escape(name)}[.]" for name in chosen))


def _note_nothing_trains(model: nn.Module, recipe: Recipe) -> Note:
    """The warning for a run in which only the embeddings' outputs require gradients: backward reaches no parameter.

    axolotl only logs "All parameters are frozen. Model will not be trained." (`freeze_layers_except`).
    """
    example = next(name for name, _ in reversed(list(model.named_parameters())))
    text = (
        f"no parameter trains: no name matches a pattern of {list(recipe.freezing.unfrozen)} (an example of a name: "
        f"{example}). axolotl logs a warning and continues: the figures have no gradients and no optimizer states"
    )
    return Note(kind="warning", key="unfrozen_parameters" if recipe.freezing.unfrozen else "adapter", text=text)


def _nothing_trains(model: nn.Module, recipe: Recipe) -> ConfigError:
    names = [name for name, _ in model.named_parameters()]
    return ConfigError(
        problem="no parameter is left to train",
        key="unfrozen_parameters" if recipe.freezing.unfrozen else "adapter",
        value=list(recipe.freezing.unfrozen) or None,
        accepted="patterns that match the start of a parameter's name, such as " + ", ".join(names[-3:]),
        remedy="correct the patterns: the names above are examples of this model's parameters",
    )
