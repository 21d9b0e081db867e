"""`install_offloading`: sets up the recipe's offloading around the training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.site import Site
from axmem_trace.models.checkpointing import switch_on
from axmem_trace.models.selective_checkpointing import make_policy
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.offloading.host_modules import host_modules_copied
from axmem_trace.training.offloading.layers import LayerOffload, find_decoder_layers
from axmem_trace.training.offloading.saved_tensors import ActivationOffload, CheckpointInputOffload
from axmem_trace.training.offloading.selective_checkpointing import SelectiveOffload

StepContext = Callable[[], AbstractContextManager[None]]
"""Makes the context for forward and backward of one micro-batch."""


@contextmanager
def install_offloading(site: Site) -> Iterator[StepContext]:
    """While open, the model is set up for the recipe's offloading. Yields the steps' context.

    It is closed before the site's own stack; offloaded tensors are then restored.
    """
    model, recipe, recorder = site.model, site.recipe, site.context.recorder
    offload = recipe.checkpointing.offload
    with ExitStack() as stack:
        contexts: list[StepContext] = []
        if recipe.checkpointing.layer_offloading:
            contexts += _install_layers(site, stack)
        if offload == "hidden_states":
            contexts.append(_install_inputs(stack, recipe, recorder))
        elif offload != "none":
            contexts.append(_install_activations(site, stack))
        if recipe.checkpointing.selective_offload:
            _install_selective(stack, model, recipe, recorder)
        stack.enter_context(host_modules_copied(model, recorder))
        if recipe.checkpointing.moves_tensors:
            text = "copies run on a second stream, whose blocks the allocator keeps separately: reserved may be higher"
            site.note(Note(kind="assumed", key=_key(recipe), text=text))
        yield _all_of(contexts)


def _key(recipe: Recipe) -> str:
    if recipe.checkpointing.selective_offload:
        return "selective_checkpointing.offload"
    return "layer_offloading" if recipe.checkpointing.layer_offloading else "activation_offloading"


def _all_of(contexts: list[StepContext]) -> StepContext:
    @contextmanager
    def opened() -> Iterator[None]:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            yield

    return opened if contexts else nullcontext


def _install_layers(site: Site, stack: ExitStack) -> list[StepContext]:
    layers = find_decoder_layers(site.model)
    if layers is None:
        text = "axolotl finds no list of decoder layers in this model and offloads nothing"
        site.note(Note(kind="warning", key="layer_offloading", text=text))
        return []
    offload = LayerOffload(site.context.recorder, site.model, layers)
    stack.enter_context(offload.installed())
    return [offload.training_step]


def _install_selective(stack: ExitStack, model: Any, recipe: Recipe, recorder: Recorder) -> None:
    """Switches checkpointing on again, with a `context_fn` that uses the recorder."""
    checkpointing = recipe.checkpointing
    offload = SelectiveOffload(recorder, make_policy(model, checkpointing))
    switch_on(model, {**checkpointing.kwargs, "use_reentrant": False, "context_fn": offload.make_contexts})
    stack.enter_context(recorder.scopes.follow_recomputation(model))


def _install_inputs(stack: ExitStack, recipe: Recipe, recorder: Recorder) -> StepContext:
    """Makes each checkpointing layer report its input tensor before it runs (axolotl's patch of `__call__`)."""
    from transformers import GradientCheckpointingLayer

    offload = CheckpointInputOffload(recorder, prefetch=recipe.checkpointing.use_reentrant)
    original = GradientCheckpointingLayer.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled() and getattr(self, "gradient_checkpointing", False):
            offload.mark(args[0] if args else kwargs.get("hidden_states"))
        return original(self, *args, **kwargs)

    stack.enter_context(replaced(GradientCheckpointingLayer, "__call__", call))
    return offload.training_step


def _install_activations(site: Site, stack: ExitStack) -> StepContext:
    model, kind = site.model, site.recipe.checkpointing.offload
    adapted = site.recipe.adapter.kind != "none"
    if kind == "disk":
        text = "axolotl 0.19 runs `disk` as `true`: its patch for the disk looks for another value and is never applied"
        site.note(Note(kind="warning", key="activation_offloading", text=text))
    kept_on_gpu = frozenset() if adapted else frozenset(each.untyped_storage()._cdata for each in model.parameters())
    offload = ActivationOffload(site.context.recorder, streams=kind != "legacy", kept_on_gpu=kept_on_gpu)
    head = _find_head(model)
    if head is not None:
        _keep_on_gpu(stack, head)
    return offload.training_step


def _find_head(model: Any) -> nn.Module | None:
    """The module that is not offloaded, found as in `get_act_offloading_ctx_manager`."""
    inner = model.base_model if hasattr(model, "peft_config") else model
    for name in ("output", "lm_head"):
        found = getattr(inner, name, None)
        if isinstance(found, nn.Module):
            return found
    decoder = getattr(inner, "decoder", None)
    if decoder is not None:
        found = getattr(decoder, "output", None) or getattr(decoder, "lm_head", None)
        return found if isinstance(found, nn.Module) else None
    for name in ("final_layer_norm", "ln_f", "head"):
        found = getattr(inner, name, None)
        if isinstance(found, nn.Module):
            return found
    return None


def _keep_on_gpu(stack: ExitStack, module: nn.Module) -> None:
    """Inside this module, saved tensors stay on the card (`NoOpManager`)."""
    open_hooks: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        hooks.__enter__()
        open_hooks.append(hooks)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        open_hooks.pop().__exit__()

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)
