"""Finds equal layers of a model, and removes some of them.

The layers are compared just after the model was created: classes, attributes, shapes and dtypes of everything inside a
layer. `layer_numbers.py` searches the source for code that depends on a layer's number.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.models.layer_numbers import refuse_uses_of_numbers

MIN_LAYERS = 8
MAX_PERIOD = 6
KEPT_PERIODS = 3
"""The number of periods in the longer of the two traced models. The shorter one has one less."""
WORTH_FOLDING = 0.75
"""Both models together must have fewer layers than this fraction of the whole model's."""
_PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
_OWN = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
"""Attributes of every module that are compared separately."""
_CONTAINERS = (list, tuple, dict, set, frozenset)
Parts = Sequence[tuple[str, nn.Module]]
"""The modules of a layer, with their paths inside it."""
Numbers = Mapping[tuple[str, str], tuple[int, int]]
"""(Path inside a layer, name of the attribute) -> (a, b): the attribute has the value a n + b in layer n."""


@dataclass(frozen=True, slots=True)
class RepeatedLayers:
    """The layers that repeat, and their attributes that contain their number."""

    repetition: Repetition
    numbers: Numbers


def find_repetition(model: nn.Module) -> RepeatedLayers:
    """The longest range of layers in which each layer equals the one that is a period earlier.

    Raises:
        CannotFold: no range saves work, or something could make its layers different.
    """
    path, layers = _longest_list(model)
    parts = [list(layer.named_modules(remove_duplicate=False)) for layer in layers]
    numbers = _find_numbers(parts)
    listed = [
        value for config in _configs(model) for value in vars(config).values() if _is_per_layer(value, len(layers))
    ]
    kinds = _sort_by_kind(parts, numbers)
    prints = [(kind, tuple(_describe(value[number]) for value in listed)) for number, kind in enumerate(kinds)]
    found = _longest_range(prints)
    if found is None:
        raise CannotFold("no range of equal layers is long enough")
    start, end, period = found
    first = start + 1  # one equal layer stays before and after, because an allocation may live until the next layer
    missing = (end - 1 - first - KEPT_PERIODS * period) // period
    repetition = Repetition(
        path=path, length=len(layers), first=first, period=period, periods=KEPT_PERIODS, missing=missing
    )
    traced = len(repetition.kept) + len(repetition.with_periods(KEPT_PERIODS - 1).kept)
    if missing < 1 or traced > WORTH_FOLDING * len(layers):
        raise CannotFold(f"two models with {traced} layers together save no work compared with {len(layers)} layers")
    _refuse_sharing(model, parts, path)
    refuse_uses_of_numbers(model, path, layers, frozenset(name for _, name in numbers))
    return RepeatedLayers(repetition, numbers)


def keep_layers(model: nn.Module, repetition: Repetition, present: Sequence[int] | None = None) -> None:
    """Removes the repetition's missing periods from the model.

    Args:
        present: the numbers of the layers that the model has; None: all.
    """
    layers = list_of_layers(model, repetition)
    places = {number: place for place, number in enumerate(present or range(repetition.length))}
    parent, _, own = repetition.path.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.ModuleList(layers[places[number]] for number in repetition.kept))


def renumber(model: nn.Module, repetition: Repetition, numbers: Numbers) -> None:
    """Number the layers that `keep_layers` has kept from 0.

    Lists in the configuration with an entry for each layer are shortened too.
    """
    kept = repetition.kept
    for number, layer in enumerate(list_of_layers(model, repetition)):
        modules = dict(layer.named_modules())
        for (place, name), (factor, shift) in numbers.items():
            if place in modules and name in vars(modules[place]):
                setattr(modules[place], name, factor * number + shift)
    for config in _configs(model):
        for name, value in list(vars(config).items()):
            if _is_per_layer(value, repetition.length):
                setattr(config, name, [value[number] for number in kept])
            elif name.endswith("num_hidden_layers") and value == repetition.length:
                setattr(config, name, len(kept))


def list_of_layers(model: nn.Module, repetition: Repetition) -> nn.ModuleList:
    """The list of layers that the repetition describes."""
    layers = model.get_submodule(repetition.path)
    assert isinstance(layers, nn.ModuleList), f"{repetition.path} is no list of layers"
    return layers


def _is_per_layer(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _configs(model: nn.Module) -> Iterator[Any]:
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and id(config) not in seen:
            seen.add(id(config))
            yield config


def _longest_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    lists = [(name, module) for name, module in model.named_modules() if type(module) is nn.ModuleList]
    if not lists or len(longest := max(lists, key=lambda pair: len(pair[1]))[1]) < MIN_LAYERS:
        raise CannotFold(f"no list of {MIN_LAYERS} layers or more")
    found = [(name, module) for name, module in lists if len(module) == len(longest)]
    if len(found) > 1:
        raise CannotFold(f"several lists have {len(longest)} layers: {', '.join(name for name, _ in found)}")
    return found[0]


def _find_numbers(layers: Sequence[Parts]) -> Numbers:
    """Attributes whose value is the number of their layer, or an affine function of it.

    A name counts only if two conditions hold. At one path inside the layer, the attribute is the layer's number in all
    layers. At every other path the attribute is affine in the layer's number. Example: the two attention modules of
    LongCat-Flash's layer n have the `layer_idx` 2 n and 2 n + 1, the indices of their keys in a cache.
    """
    values: dict[tuple[str, str], dict[int, int]] = {}
    for number, parts in enumerate(layers):
        for path, module in parts:
            for name, value in vars(module).items():
                if type(value) is int:
                    values.setdefault((path, name), {})[number] = value
    affine = {place: _affine(each) for place, each in values.items()}
    own = {name for (_, name), rule in affine.items() if rule == (1, 0)}
    wrong = {name for (_, name), rule in affine.items() if rule is None or not rule[0]}
    return {place: rule for place, rule in affine.items() if rule is not None and place[1] in own - wrong}


def _affine(values: Mapping[int, int]) -> tuple[int, int] | None:
    """(a, b) so that each value is a times its layer's number, plus b; None if there is no such pair."""
    (first, value), *others = values.items()
    if not others:
        return (1, 0) if value == first else None
    number, other = others[-1]
    factor, rest = divmod(other - value, number - first)
    shift = value - factor * first
    if rest or any(each != factor * number + shift for number, each in values.items()):
        return None
    return factor, shift


def _longest_range(prints: Sequence[Hashable]) -> tuple[int, int, int] | None:
    """(start, end, period) of the longest periodic range. If several are equally long: that with the shortest period."""
    best: tuple[int, int, int] | None = None
    for period in range(1, MAX_PERIOD + 1):
        alike = [prints[i] == prints[i + period] for i in range(len(prints) - period)]
        position = 0
        for same, group in itertools.groupby(alike):
            length = len(list(group))
            if same and (best is None or length + period > best[1] - best[0]):
                best = (position, position + length + period, period)
            position += length
    return best


def _sort_by_kind(layers: Sequence[Parts], numbers: Numbers) -> list[int]:
    """For each layer, the number of its kind. Layers of one kind do the same, unless code uses their number."""
    examples: list[Parts] = []
    kinds: list[int] = []
    for parts in layers:
        latest = kinds[-1:]  # most layers equal the previous one
        order = (*latest, *(kind for kind in range(len(examples)) if kind not in latest))
        kind = next((kind for kind in order if _are_alike(parts, examples[kind], numbers)), len(examples))
        if kind == len(examples):
            examples.append(parts)
        kinds.append(kind)
    return kinds


def _are_alike(layer: Parts, other: Parts, numbers: Numbers) -> bool:
    """True if two layers have modules of the same names and classes, with equal attributes and tensors."""
    return len(layer) == len(other) and all(
        name == other_name
        and type(module) is type(other_module)
        and _have_like_attributes(name, vars(module), vars(other_module), numbers)
        and _are_like_tensors(module._parameters, other_module._parameters)
        and _are_like_tensors(module._buffers, other_module._buffers)
        and module._non_persistent_buffers_set == other_module._non_persistent_buffers_set
        for (name, module), (other_name, other_module) in zip(layer, other, strict=True)
    )


def _have_like_attributes(path: str, own: Mapping[str, Any], other: Mapping[str, Any], numbers: Numbers) -> bool:
    if own.keys() != other.keys():
        return False
    for name, value in own.items():
        theirs = other[name]
        if value is theirs or name in _OWN:
            continue
        kind = type(value)
        if kind is type(theirs) and not value and not theirs and isinstance(value, _CONTAINERS):
            continue
        if kind is int and (path, name) in numbers:
            continue
        if _describe(value) != _describe(theirs):
            return False
    return True


def _are_like_tensors(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if the parameters, or buffers, of two modules are equal. One that is None counts as absent."""
    if not own and not other:
        return True
    present = [(name, tensor) for name, tensor in own.items() if tensor is not None]
    theirs = [(name, tensor) for name, tensor in other.items() if tensor is not None]
    return len(present) == len(theirs) and all(
        name == other_name
        and type(tensor) is type(other_tensor)
        and tensor.shape == other_tensor.shape
        and tensor.dtype == other_tensor.dtype
        and tensor.stride() == other_tensor.stride()
        and tensor.requires_grad == other_tensor.requires_grad
        and tensor.device == other_tensor.device
        for (name, tensor), (other_name, other_tensor) in zip(present, theirs, strict=True)
    )


def _describe(value: Any) -> Hashable:
    """A value that is equal for two attributes only if they cannot be distinguished. An object is only equal to itself."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), tuple(_describe(each) for each in value)
    if isinstance(value, dict):
        return type(value), tuple((_describe(key), _describe(each)) for key, each in value.items())
    if isinstance(value, functools.partial):
        return _describe((value.func, value.args, value.keywords))
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_describe(each) for each in value)
    return type(value), id(value)


def _refuse_sharing(model: nn.Module, layers: Sequence[Parts], path: str) -> None:
    """Raises `CannotFold` if layers share modules or tensors, or one of their tensors is tied to another."""
    seen: set[int] = set()
    for parts in layers:
        own: set[int] = set()
        for _, module in parts:
            own.add(id(module))
            own.update(id(tensor) for tensor in module._parameters.values() if tensor is not None)
            own.update(id(tensor) for tensor in module._buffers.values() if tensor is not None)
        if not own.isdisjoint(seen):
            raise CannotFold("layers share modules or weights")
        seen |= own
    tied = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ()
    pairs = tied.items() if isinstance(tied, dict) else ((name, "") for name in tied)
    own_name = path.rpartition(".")[2]
    if any(f"{own_name}." in each or f"{own_name}\\." in each for pair in pairs for each in pair):
        raise CannotFold("weights of layers are tied")
