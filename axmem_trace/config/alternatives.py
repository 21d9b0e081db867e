"""Recipes for comparison: how older releases ran the same configuration, and alternatives today.

axolotl until 0.12 passed `load_in_4bit` to `from_pretrained` with any adapter (0.12.2 `loaders/model.py` 520; removed in
0.13.1). Until 0.13 it ran transformers 4.57, where each expert was a linear layer, which bitsandbytes quantises; 0.14.0
pins transformers 5.0.0, where experts are fused parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from axmem_trace.config.derive.task import is_moe, text_config
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note
from axmem_trace.recipe.model import EXPERT_COUNTS
from axmem_trace.recipe.recipe import Alternative, Recipe

Change = Mapping[str, Any]
ReadWith = Callable[[Change, Change], Recipe]
"""The same configuration with further overrides and assumptions."""
MOST_LINEAR_EXPERTS = 512
"""Mixtral 8x7B has 256, and a trace of them as linear layers takes a few seconds; Qwen3-30B-A3B has 6,144."""
LINEAR_IN_TRANSFORMERS_4 = frozenset(
    """
    deepseek_v2 deepseek_v3 dots1 ernie4_5_moe flex_olmo glm4_moe glm4v_moe hunyuan_v1_moe jamba longcat_flash minimax
    mixtral olmoe phimoe qwen2_moe qwen3_moe qwen3_next qwen3_omni_moe
    """.split()
)
"""Model types whose experts were linear layers in transformers 4.57.1 (`models/*/modeling_*.py`: an `nn.ModuleList`). Those
of aria, dbrx, gpt_oss, granitemoe, jetmoe, llama4 and qwen3_vl_moe were already fused. 4.57.1 has no later types."""
UNQUANTISED = "`adapter: lora` with `load_in_4bit: true` is not quantised"


def find_alternatives(recipe: Recipe, read: ReadWith) -> Iterator[Alternative]:
    """Alternatives whose figures may differ; one that can't be read is left out."""
    for note, words, overrides, assumptions in _candidates(recipe):
        if assumptions and _num_experts(recipe) > MOST_LINEAR_EXPERTS:
            yield Alternative(recipe=None, note=note, words=words)
            continue
        try:
            other = read(overrides, assumptions)
        except ConfigError:
            continue
        yield Alternative(recipe=other, note=note, words=words)


def _candidates(recipe: Recipe) -> Iterator[tuple[Note, str, Change, Change]]:
    for note in recipe.notes:
        if note.key == "load_in_4bit" and note.text.startswith(UNQUANTISED):
            yield note, "`adapter: qlora`", {"adapter": "qlora"}, {}
    quantisation, adapter = recipe.quantisation, recipe.adapter
    base = recipe.model.base
    if quantisation.quantise_moe_experts or recipe.older.experts_layout == "linear" or not is_moe(base):
        return
    if not LINEAR_IN_TRANSFORMERS_4 & {base.model_type, base.text_model_type}:
        return
    bits = {"bnb_4bit": "load_in_4bit", "bnb_8bit": "load_in_8bit"}.get(quantisation.method, "")
    if adapter.target_linear:  # quantize_moe_experts can't be combined with it
        key, what = bits or "lora_target_linear", "reached by lora_target_linear" + (", and quantised" if bits else "")
        yield _note(recipe, key, what), "`--assume experts_layout=linear`", {}, {"experts_layout": "linear"}
    elif bits:
        way_out = {"quantize_moe_experts": True}
        yield _note(recipe, bits, "quantised with the rest"), "`quantize_moe_experts: true`", way_out, {}


def _note(recipe: Recipe, key: str, what: str) -> Note:
    text = f"until axolotl 0.13 (transformers 4) experts were linear layers, {what}"
    return Note(kind="warning", key=key, text=text, line=recipe.written[key].line if key in recipe.written else 0)


def _num_experts(recipe: Recipe) -> int:
    """The number of experts of all layers together."""
    config = text_config(recipe.model.base)
    counts = [config.get(name) for name in EXPERT_COUNTS]
    experts = max((count for count in counts if isinstance(count, int)), default=0)
    layers = config.get("num_hidden_layers")
    return experts * layers if isinstance(layers, int) else experts
