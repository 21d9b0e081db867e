"""`layer_offloading`: frozen weights of decoder layers are in host memory. Each layer's weights are copied to the card
one layer before their use.

Source: axolotl 0.19 `core/trainers/mixins/layer_offloading.py` (`LayerOffloadManager`, one layer prefetched).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from axmem_trace.tracing.recorder import Recorder


class LayerOffload:
    """Moves each layer's frozen parameters. Quantisation states stay on the card, because they are not parameters."""

    def __init__(self, recorder: Recorder, model: nn.Module, layers: nn.ModuleList) -> None:
        self.recorder, self.layers = recorder, list(layers)
        owners = {id(each): name.rpartition(".")[0] for name, each in model.named_parameters(remove_duplicate=False)}
        self._frozen = [
            [(owners[id(each)], each) for each in layer.parameters() if not each.requires_grad] for layer in self.layers
        ]
        self._host: dict[int, torch.Tensor] = {}
        self._loaded = set(range(len(self.layers)))
        self._hooks: list[Any] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While open, the layers have hooks. At the beginning, all layers are moved to the host and the cache is
        emptied."""
        for index in range(len(self.layers)):
            self._offload(index)
        self.recorder.empty_cache()
        for index, layer in enumerate(self.layers):
            self._watch(index, layer)
        try:
            yield
        finally:
            for hook in self._hooks:
                hook.remove()
            self._restore()

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """The context of a step. Before and after it, only the first layer is on the card."""
        self._begin_again()
        yield
        self._begin_again()

    def _restore(self) -> None:
        """Restores the model; this is not part of the run."""
        with self.recorder.paused():
            for index in set(range(len(self.layers))) - self._loaded:
                for _, parameter in self._frozen[index]:
                    parameter.data = self._host[id(parameter)].clone()

    def _begin_again(self) -> None:
        for index in list(self._loaded):
            self._offload(index)
        self._load(0)

    def _watch(self, index: int, layer: nn.Module) -> None:
        last = len(self.layers) - 1

        def before_forward(module: nn.Module, args: Any) -> None:
            self._load(index)
            self._load(index + 1)

        def after_forward(module: nn.Module, args: Any, output: Any) -> None:
            self._offload(index - 1)
            if index == last:
                self._offload(index)

        def before_backward(module: nn.Module, gradients: Any) -> None:
            self._load(index)
            self._load(index - 1)

        def after_backward(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self._offload(index + 1)
            if index == 0:
                self._offload(index)

        self._hooks += [
            layer.register_forward_pre_hook(before_forward),
            layer.register_forward_hook(after_forward),
            layer.register_full_backward_pre_hook(before_backward),
            layer.register_full_backward_hook(after_backward),
        ]

    def _offload(self, index: int) -> None:
        if index not in self._loaded:
            return
        self._loaded.discard(index)
        for module, parameter in self._frozen[index]:
            key = id(parameter)
            if key not in self._host:
                self._host[key] = self.recorder.copy_to_host(parameter.data, role="weight", module=module)
            parameter.data = self._host[key]

    def _load(self, index: int) -> None:
        if index in self._loaded or not 0 <= index < len(self.layers):
            return
        self._loaded.add(index)
        for module, parameter in self._frozen[index]:
            parameter.data = self._host[id(parameter)].clone()
            self.recorder.register(parameter.data, role="weight", module=module)


def find_decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The first list, in breadth-first order, of layers whose class is a decoder layer (`_find_decoder_layers`)."""
    queue = [model]
    while queue:
        for child in queue.pop(0).children():
            if isinstance(child, nn.ModuleList) and len(child):
                name = type(child[0]).__name__
                if "DecoderLayer" in name or "TransformerBlock" in name:
                    return child
            else:
                queue.append(child)
    return None
