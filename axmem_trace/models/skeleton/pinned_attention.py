"""The attention kernels that a model's class accepts in the transformers that axolotl pins, if the installed one differs.

A release of transformers may add a kernel to a class, or remove one. axolotl runs with the release that it pins. The flags
`_supports_flash_attn`, `_supports_sdpa` and `_supports_flex_attn` of every model class were compared in transformers 5.16.1
(axolotl 0.19), 5.20.1 (axolotl 0.21) and 5.24.0. The tables list the classes for which only 5.24.0 differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced

_FLASH, _SDPA, _FLEX = "_supports_flash_attn", "_supports_sdpa", "_supports_flex_attn"
_DIFFUSION_GEMMA = ("DecoderModel", "EncoderModel", "EncoderTextModel", "ForBlockDiffusion", "Model", "PreTrainedModel")
_MLLAMA = ("ForCausalLM", "ForConditionalGeneration", "Model", "PreTrainedModel", "TextModel", "VisionModel")
_HEADS = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "Model", "PreTrainedModel")
_T5GEMMA = tuple(
    """
    Decoder Encoder EncoderModel ForConditionalGeneration ForSequenceClassification ForTokenClassification Model
    PreTrainedModel
    """.split()
)
_GPTJ = ("ForCausalLM", "ForQuestionAnswering", "ForSequenceClassification", "Model", "PreTrainedModel")
_CODEGEN = ("ForCausalLM", "Model", "PreTrainedModel")


def _named(family: str, parts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(family + part for part in parts)


_IMAGE_AND_TEXT = ("ForConditionalGeneration", "Model")
_ACCEPTED = {
    _FLASH: frozenset().union(
        *(_named(family, _IMAGE_AND_TEXT) for family in ("Gemma3", "Gemma4", "Gemma4Unified", "PI0", "PaliGemma")),
        _named("Mllama", _MLLAMA),
        _named("DiffusionGemma", _DIFFUSION_GEMMA),
    ),
    _SDPA: _named("Gemma2", _HEADS) | _named("VaultGemma", _HEADS) | _named("T5Gemma", _T5GEMMA),
}
"""Flag -> the classes in which it is true only in the pinned releases."""
_NOT_ACCEPTED = {
    _FLASH: _named("CodeGen", _CODEGEN),
    _SDPA: _named("CodeGen", _CODEGEN) | _named("GPTJ", _GPTJ),
    _FLEX: _named("CodeGen", _CODEGEN) | _named("GPTJ", _GPTJ),
}
"""Flag -> the classes in which it is true only in later releases."""


@contextmanager
def attention_support_of_pins(model_class: Any, recipe: Recipe, notes: Notes) -> Iterator[None]:
    """Inside this context, each class accepts the same kernels as in axolotl's transformers. Adds a note if this changes
    anything for the kernel of the recipe."""
    from transformers import PreTrainedModel

    changes = [
        (kind, flag, value)
        for kind in {model_class, *_below(PreTrainedModel)}
        for flag, value in _flags_of(kind.__name__)
        if bool(getattr(kind, flag, value)) is not value
    ]
    with ExitStack() as stack:
        for kind, flag, value in changes:
            stack.enter_context(replaced(kind, flag, value))
            if kind is model_class and flag == _flag_of(recipe.attention.kernel):
                notes.append(_note(model_class.__name__, recipe, accepted=value))
        yield


def _below(kind: Any) -> Iterator[Any]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _flags_of(name: str) -> Iterator[tuple[str, bool]]:
    for table, value in ((_ACCEPTED, True), (_NOT_ACCEPTED, False)):
        for flag, names in table.items():
            if name in names:
                yield flag, value


def _flag_of(kernel: str) -> str:
    if kernel.startswith(("flash_attention", "kernels-community/")):
        return _FLASH
    return {"sdpa": _SDPA, "varlen": _SDPA, "flex_attention": _FLEX}.get(kernel, "")


def _note(name: str, recipe: Recipe, *, accepted: bool) -> Note:
    import transformers

    pinned, kernel = recipe.axolotl.pins["transformers"].removeprefix("=="), recipe.attention.kernel
    has, lacks = ("accept", "does not") if accepted else ("do not accept", "does")
    text = f"{name}: the transformers that axolotl pins ({pinned}) {has} {kernel} for it, the installed "
    text += f"{transformers.__version__} {lacks}; the figures follow axolotl's"
    return Note(kind="assumed", key="attn_implementation", text=text)
