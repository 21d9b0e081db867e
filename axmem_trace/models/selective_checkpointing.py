"""torch's selective checkpointing, with axolotl's choice of outputs that are saved instead of recomputed.

Source: axolotl 0.19 `monkeypatch/selective_checkpointing.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Checkpointing

_OTHER_ATTENTION = ("aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention")
"""Kernels without `flash` in their names."""
_LOCAL_LAYERS = ("sliding_attention", "chunked_attention")
"""Types of layers with cheap attention. It is recomputed, unless `save_sliding_window` or other types are set."""
_WINDOW = "window_size_left"
_UNSEEN = ("eager", "flex_attention", "xformers", "sage", "varlen", "flash_attention_4")
"""Kernels that have no operator with a matching name: nothing of their attention is saved."""


def make_context_function(model: nn.Module, checkpointing: Checkpointing) -> Callable[[], Any]:
    """The `context_fn` that axolotl passes to `torch.utils.checkpoint`."""
    policy = make_policy(model, checkpointing)

    def make_contexts() -> Any:
        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        return create_selective_checkpoint_contexts(policy)

    return make_contexts


def make_policy(model: nn.Module, checkpointing: Checkpointing) -> Callable[..., Any]:
    """The function that chooses which outputs are saved. It also adds hooks to layers, which the function needs.

    Local attention is recognised by the type of the running layer, and by the window of flash-attn's operators.
    """
    details = checkpointing.selective_details
    saves_local = bool(details.get("save_sliding_window"))
    named = details.get("recompute_layer_types")
    recomputed = () if saves_local else tuple(_LOCAL_LAYERS if named is None else named)
    at_work: list[str] = []
    if recomputed:
        _follow_layers(model, at_work)

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        from torch.utils.checkpoint import CheckpointPolicy

        is_local = (bool(at_work) and at_work[-1] in recomputed) or (not saves_local and _has_window(op, args, kwargs))
        if _matches(op, checkpointing.selective_save) and not is_local:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def note_selective(checkpointing: Checkpointing, kernel: str, notes: Notes) -> None:
    """Adds a note about outputs that the policy can't save."""
    key = "selective_checkpointing"
    if kernel == "varlen" and "attention" in checkpointing.selective_save and checkpointing.selective_sees_varlen:
        text = (
            "the run saves the output of packed SDPA and one number per token and head; the figures do not include them"
        )
        notes.append(Note(kind="not_modelled", key=key, text=text, direction="more"))
    elif tuple(checkpointing.selective_save) == ("attention",) and kernel in _UNSEEN:
        text = f"the policy sees no operator of {kernel} attention: the whole layer is recomputed"
        notes.append(Note(kind="warning", key=key, text=text))


def _matches(op: Any, save: tuple[str, ...]) -> bool:
    """`attention` means the kernels of SDPA and every flash-attn operator. Other texts are parts of an operator's name."""
    name: str = op.name()
    is_backward = "backward" in name or "bwd" in name
    is_attention = name in _OTHER_ATTENTION or "flash_attn" in name or "flash_attention" in name
    return any(is_attention and not is_backward if wanted == "attention" else wanted in name for wanted in save)


def _has_window(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    value = kwargs.get(_WINDOW)
    for position, argument in enumerate(op._schema.arguments):
        if argument.name == _WINDOW and position < len(args):
            value = args[position]
    return isinstance(value, int) and value >= 0


def _follow_layers(model: nn.Module, at_work: list[str]) -> None:
    from transformers import GradientCheckpointingLayer

    for module in model.modules():
        kind = _attention_type(module) if isinstance(module, GradientCheckpointingLayer) else None
        if kind is not None:
            module.register_forward_pre_hook(lambda module, args, kind=kind: at_work.append(kind))
            module.register_forward_hook(lambda module, args, output: at_work.clear(), always_call=True)


def _attention_type(layer: nn.Module) -> str | None:
    for holder in (layer, getattr(layer, "self_attn", None), getattr(layer, "attention", None)):
        kind = getattr(holder, "layer_type", None)
        if isinstance(kind, str):
            return kind
        if getattr(holder, "is_sliding", None) is True:
            return "sliding_attention"
    return None
