"""Warnings about the built model: effects that the author of the configuration may not expect."""

from __future__ import annotations

import re
from typing import Any

from axmem_trace.model_facts import ModelFacts, TensorFact
from axmem_trace.models.skeleton.model_config import text_part
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Adapter, Recipe
from axmem_trace.units import format_bytes

_PACKED_DTYPES = ("uint8", "int8", "int32")
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")
"""Names of the table in GPT-2, GPT-Neo and GPT-BigCode; in OPT and BioGPT; in BERT."""


def note_warnings(recipe: Recipe, facts: ModelFacts, notes: Notes) -> None:
    """Warn about layers that are not quantised or have no LoRA, and about fp32 weights after k-bit preparation."""
    experts = [fact for fact in facts.tensors if _is_fused_expert(fact)]
    _note_unquantised_experts(recipe, experts, notes)
    _note_other_linears(recipe, facts, notes)
    _note_lora_of_experts(recipe, facts, experts, notes)
    _note_kbit_without_quantisation(recipe, facts, notes)
    _note_kept_on_gpu(recipe, notes)


def note_learned_positions(model: Any, recipe: Recipe, notes: Notes) -> None:
    """Warn about rows that are longer than a table of learned positions: meta tensors do not check indices.

    OPT's table has two rows more than positions (`OPTLearnedPositionalEmbedding`). A table of another size (an audio
    tower's) has another purpose.
    """
    positions = getattr(text_part(model.config), "max_position_embeddings", None)
    longest = max(recipe.batch.row_tokens, recipe.evaluation.row_tokens if recipe.evaluation.enabled else 0)
    if not isinstance(positions, int) or longest <= positions:
        return
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and getattr(module, "num_embeddings", 0) - positions in (0, 2):
            text = (
                f"the model has {positions:,} learned positions ({name}), but rows have up to {longest:,} tokens: the run "
                "fails at a longer row (index out of range)"
            )
            notes.append(Note(kind="warning", key="sequence_len", text=text))
            return


def _is_fused_expert(fact: TensorFact) -> bool:
    """True for a fused expert weight. It is in a module called `experts`, or (DBRX) in a module inside it that is not a list
    of experts."""
    parts = _plain_name(fact).split(".")
    return fact.kind == "parameter" and fact.role == "weight" and "experts" in parts and parts[-1] != "weight"


def _plain_name(fact: TensorFact) -> str:
    """The name before peft wrapped the module, or bitsandbytes parametrised it."""
    name = re.sub(r"\.(base_layer|parametrizations)\b", "", fact.name).removesuffix(".original")
    return name.removeprefix("base_model.model.")


def _suffixes(experts: list[TensorFact]) -> list[str]:
    """The names after the layer's number. With such a name, `lora_target_parameters` means a parameter of every layer."""
    return sorted({re.split(r"\.\d+\.", _plain_name(fact))[-1] for fact in experts})


def _note_unquantised_experts(recipe: Recipe, experts: list[TensorFact], notes: Notes) -> None:
    method = recipe.quantisation.method
    plain = [fact for fact in experts if fact.dtype not in _PACKED_DTYPES]
    if method in ("gptq", "awq") and plain:
        _note_unpacked_experts(recipe, plain, notes)
    if method not in ("bnb_4bit", "bnb_8bit") or not plain:
        return
    nbytes = sum(fact.nbytes for fact in plain)
    dtypes = ", ".join(sorted({fact.dtype for fact in plain}))
    text = (
        f"the experts are fused parameters, and bitsandbytes does not quantise them: they stay in {dtypes} "
        f"({format_bytes(nbytes)}). "
    )
    reached = all(_plain_name(fact).split(".")[-2] == "experts" for fact in plain)
    advice = "packs them" if reached else "packs 3-D parameters only, and these are not 3-D"
    text += f"`quantize_moe_experts: true` {advice}"
    key = "load_in_4bit" if method == "bnb_4bit" else "load_in_8bit"
    notes.append(Note(kind="warning", key=key, text=text, bytes=nbytes))


def _note_unpacked_experts(recipe: Recipe, experts: list[TensorFact], notes: Notes) -> None:
    """Experts of a GPTQ or AWQ checkpoint are packed linear layers. transformers 5 does not convert them to fused experts.

    Source: transformers 5 `conversion_mapping.py` (the conversion to fused experts reads `experts.*.w1.weight`, but a packed
    layer has `qweight`), `modeling_utils.py` `from_pretrained` (missing weights are initialised, unexpected ones are not
    read); optimum 2.3 `gptq/quantizer.py` `convert_model` (only linear layers are replaced).
    """
    nbytes = sum(fact.nbytes for fact in experts)
    text = (
        f"transformers 5 does not read the packed experts of a {recipe.quantisation.method.upper()} checkpoint: it builds "
        f"fused experts, unquantised ({format_bytes(nbytes)}) and with random weights, and only warns that they are newly "
        "initialised. The figures are for that run; `--assume experts_layout=linear` gives transformers 4's packed experts"
    )
    notes.append(Note(kind="warning", key="base_model", text=text, bytes=nbytes))


def _note_other_linears(recipe: Recipe, facts: ModelFacts, notes: Notes) -> None:
    """Warns about linear layers of a model's own subclass, such as `FalconLinear`. transformers replaces only layers whose
    type is exactly `nn.Linear` (`integrations/bitsandbytes.py` `replace_with_bnb_linear`, since 5.0)."""
    if recipe.quantisation.method not in ("bnb_4bit", "bnb_8bit"):
        return
    classes = {module.name: module.class_name for module in facts.modules}
    found = [
        fact
        for fact in facts.tensors
        if fact.kind == "parameter"
        and fact.role == "weight"
        and fact.name.endswith(".weight")
        and classes.get(fact.module, "").endswith("Linear")
        and classes[fact.module] != "Linear"
    ]
    if not found:
        return
    names, dtypes = ({classes[fact.module] for fact in found}, {fact.dtype for fact in found})
    nbytes = sum(fact.nbytes for fact in found)
    text = (
        f"transformers packs plain nn.Linear layers only: {len(found)} of class {', '.join(sorted(names))} "
        f"stay unquantised ({format_bytes(nbytes)} in {', '.join(sorted(dtypes))})"
    )
    key = "load_in_4bit" if recipe.quantisation.method == "bnb_4bit" else "load_in_8bit"
    notes.append(Note(kind="warning", key=key, text=text, bytes=nbytes))


def _note_lora_of_experts(recipe: Recipe, facts: ModelFacts, experts: list[TensorFact], notes: Notes) -> None:
    """Warn if LoRA adapts fused experts, or does not adapt them, against expectation: they are parameters, not linear
    layers."""
    adapter = recipe.adapter
    if adapter.kind not in ("lora", "qlora"):
        return
    _note_unmatched_parameters(adapter, facts, experts, notes)
    if not experts:
        return
    key = "lora_target_linear" if adapter.target_linear else "lora_target_modules"
    wrapped = [fact for fact in experts if ".base_layer." in fact.name]
    suffixes = _suffixes(experts)
    if wrapped and not adapter.target_parameters:
        text = (
            f"peft applies these targets to the fused experts too ({', '.join(_suffixes(wrapped))}; "
            "`convert_peft_config_for_transformers`): most trained parameters are in their adapters. "
            "To exclude the experts, name only attention's layers in lora_target_modules"
        )
        notes.append(Note(kind="warning", key=key, text=text))
    if not wrapped and not adapter.target_parameters:
        text = (
            "LoRA does not adapt the fused experts, which are parameters, not linear layers: "
            f"`lora_target_parameters: [{', '.join(suffixes)}]` adapts them"
        )
        notes.append(Note(kind="warning", key=key, text=text))


def _note_unmatched_parameters(adapter: Adapter, facts: ModelFacts, experts: list[TensorFact], notes: Notes) -> None:
    """peft only warns if a target parameter does not exist (`tuners_utils.py` `inject_adapter`)."""
    names = (
        {_plain_name(fact) for fact in facts.tensors if fact.kind == "parameter"} if adapter.target_parameters else ()
    )
    unmatched = [
        target for target in adapter.target_parameters if not any(f".{name}".endswith(f".{target}") for name in names)
    ]
    if unmatched:
        text = f"no parameter is called {', '.join(unmatched)}: peft only warns, and adapts the others"
        if experts:
            text += f". The experts of this model are {', '.join(_suffixes(experts))}"
        notes.append(Note(kind="warning", key="lora_target_parameters", text=text))


def _note_kbit_without_quantisation(recipe: Recipe, facts: ModelFacts, notes: Notes) -> None:
    """Warns about k-bit preparation without quantised weights. `config/warn.py` warns about `adapter: lora` with
    `load_in_4bit: true`."""
    said = any(note.key == "load_in_4bit" and note.kind == "warning" for note in recipe.notes)
    if said or recipe.quantisation.method != "none" or not recipe.quantisation.kbit_preparation:
        return
    upcast = sum(
        f.nbytes for f in facts.tensors if f.role == "weight" and f.dtype == "float32" and f.kind == "parameter"
    )
    text = (
        f"nothing is quantised, but k-bit preparation runs and casts the weights to fp32 ({format_bytes(upcast)}): "
        "load_in_4bit needs `adapter: qlora`, load_in_8bit needs `adapter: lora`"
    )
    notes.append(Note(kind="warning", key="load_in_4bit", text=text, bytes=upcast))


def _note_kept_on_gpu(recipe: Recipe, notes: Notes) -> None:
    if recipe.adapter.on_cpu:
        text = "the adapter and the embeddings are counted on the GPU, where the trainer moves them before training"
        notes.append(Note(kind="assumed", key="lora_on_cpu", text=text))
