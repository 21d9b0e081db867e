"""Replaces forwards of a built model, and restores them. Kernels change a model only in this way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axmem_trace.models.built import unwrapped
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.patching import replaced, replaced_forward, replaced_items
from axmem_trace.tracing.recording_mode import RecordingMode

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Site:
    """The argument of every installer: the model (with or without a peft wrapper), the recipe, the recording, and the
    stack that undoes the installer's changes when it closes."""

    model: nn.Module
    recipe: Recipe
    recording: RecordingMode
    stack: ExitStack

    @property
    def context(self) -> KernelContext:
        """The context of the rules."""
        return self.recording.context

    @property
    def base(self) -> Any:
        """The transformers model inside a peft wrapper."""
        return unwrapped(self.model)

    @property
    def model_type(self) -> str:
        """`model_type` in `config.json`."""
        return self.recipe.model.base.model_type or str(getattr(self.base.config, "model_type", ""))

    def note(self, note: Note) -> None:
        """Adds a note, unless an equal one exists."""
        self.context.note(note)

    def replace_forward(self, module: nn.Module, forward: Forward) -> None:
        """Replace `module.forward` by `forward` bound to the module, as if its class were replaced."""
        self.stack.enter_context(replaced_forward(module, forward))

    def replace_attribute(self, target: Any, name: str, value: Any) -> None:
        """Replace an attribute of a Python module, class or object."""
        self.stack.enter_context(replaced(target, name, value))

    def add_attribute(self, target: Any, name: str, value: Any) -> None:
        """Add an attribute that the target does not have."""
        self.stack.enter_context(replaced(target, name, value, new=True))

    def replace_items(self, mapping: MutableMapping[str, Any], items: Mapping[str, Any]) -> None:
        """Replace items of a dictionary. New keys are removed when the stack closes."""
        self.stack.enter_context(replaced_items(mapping, items))

    def instances(self, class_names: tuple[str, ...], module_name: str = "") -> Iterator[nn.Module]:
        """The model's modules of these classes. With `module_name`, only classes of `modeling_<module_name>`."""
        suffix = f".modeling_{module_name}" if module_name else ""
        for module in self.model.modules():
            kind = type(module)
            if kind.__name__ in class_names and kind.__module__.endswith(suffix):
                yield module


def class_prefix(model_type: str) -> str:
    """The prefix of the model's class names (axolotl `utils/callbacks/models.py` `get_causal_lm_model_cls_prefix`)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if name is None:
        return "".join(part.capitalize() for part in model_type.split("_"))
    for suffix in ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "GenerationDecoder"):
        name = name.replace(suffix, "")
    return str(name)


def head_weight(head: nn.Module) -> torch.Tensor:
    """The weight that a fused loss reads: `lm_head.weight`. In a peft wrapper it is the weight of the base layer or of the
    saved copy."""
    weight: torch.Tensor = head.weight  # type: ignore[assignment]
    return weight
