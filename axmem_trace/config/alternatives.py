"""What older releases made of the same configuration, and the way out today: recipes whose figures are compared.

axolotl until 0.12 handed `load_in_4bit` to `from_pretrained` with any adapter (0.12.2 `loaders/model.py` 520; gone in
0.13.1). Until 0.13 it ran transformers 4.57, where each expert was a linear layer, which bitsandbytes quantises; 0.14.0
pins transformers 5.0.0, where experts are fused parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from axmem_trace.config.derive.task import is_moe
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Alternative, Recipe

Change = Mapping[str, Any]
ReadWith = Callable[[Change, Change], Recipe]
"""The same configuration with further overrides and assumptions."""
UNQUANTISED = "`adapter: lora` with `load_in_4bit: true` is not quantised"


def find_alternatives(recipe: Recipe, read: ReadWith) -> Iterator[Alternative]:
    """Those whose figures may differ; one that can't be read is left out."""
    for note, words, overrides, assumptions in _candidates(recipe):
        try:
            other = read(overrides, assumptions)
        except ConfigError:
            continue
        yield Alternative(recipe=other, note=note, words=words)


def _candidates(recipe: Recipe) -> Iterator[tuple[Note, str, Change, Change]]:
    for note in recipe.notes:
        if note.key == "load_in_4bit" and note.text.startswith(UNQUANTISED):
            yield note, "`adapter: qlora`", {"adapter": "qlora"}, {}
    quantisation, model = recipe.quantisation, recipe.model
    bits = {"bnb_4bit": "load_in_4bit", "bnb_8bit": "load_in_8bit"}.get(quantisation.method)
    if bits is None or quantisation.quantise_moe_experts or model.experts_layout == "linear" or not is_moe(model.base):
        return
    text = "until axolotl 0.13 (transformers 4) experts were linear layers, and quantised with the rest"
    note = Note(kind="warning", key=bits, text=text, line=recipe.written[bits].line if bits in recipe.written else 0)
    if recipe.adapter.target_linear:  # which quantize_moe_experts does not go with
        yield note, "`--assume experts_layout=linear`", {}, {"experts_layout": "linear"}
    else:
        yield note, "`quantize_moe_experts: true`", {"quantize_moe_experts": True}, {}
