"""What the built model shows that its author may not expect."""

from __future__ import annotations

from axmem_trace.facts import ModelFacts, TensorFact
from axmem_trace.notes import Note
from axmem_trace.recipe.types import Recipe
from axmem_trace.units import format_bytes

_PACKED_DTYPES = ("uint8", "int8", "int32")


def note_traps(recipe: Recipe, facts: ModelFacts, notes: list[Note]) -> None:
    """Warn of layers that quantisation or LoRA does not reach, and of fp32 that k-bit preparation left."""
    experts = [fact for fact in facts.tensors if _is_fused_expert(fact)]
    _note_unquantised_experts(recipe, experts, notes)
    _note_other_linears(recipe, facts, notes)
    _note_lora_without_experts(recipe, facts, experts, notes)
    _note_kbit_without_quantisation(recipe, facts, notes)
    _note_kept_on_gpu(recipe, notes)


def _is_fused_expert(fact: TensorFact) -> bool:
    """A fused expert weight has no module of its own per expert: its name ends in `experts.<parameter>`."""
    return (
        fact.kind == "parameter" and fact.role == "weight" and fact.module.split(".base_layer")[0].endswith("experts")
    )


def _note_unquantised_experts(recipe: Recipe, experts: list[TensorFact], notes: list[Note]) -> None:
    plain = [fact for fact in experts if fact.dtype not in _PACKED_DTYPES]
    if recipe.quantisation.method in ("gptq", "awq") and plain:
        _note_unpacked_experts(recipe, plain, notes)
    if recipe.quantisation.method not in ("bnb_4bit", "bnb_8bit") or not plain:
        return
    nbytes = sum(fact.nbytes for fact in plain)
    dtypes = ", ".join(sorted({fact.dtype for fact in plain}))
    text = (
        f"bitsandbytes packs linear layers: fused experts stay unquantised ({format_bytes(nbytes)} in {dtypes}). "
        "`quantize_moe_experts: true` packs them"
    )
    notes.append(Note(kind="warning", key="quantize_moe_experts", text=text, bytes=nbytes))


def _note_unpacked_experts(recipe: Recipe, experts: list[TensorFact], notes: list[Note]) -> None:
    """A GPTQ or AWQ checkpoint has its experts as packed linear layers; transformers 5 builds them fused."""
    nbytes = sum(fact.nbytes for fact in experts)
    text = (
        f"the checkpoint's {recipe.quantisation.method.upper()} experts are packed linear layers, and transformers 5 "
        f"builds fused experts, shown unpacked ({format_bytes(nbytes)}): the run needs less than shown, or does not load"
    )
    notes.append(Note(kind="not_modelled", key="base_model", text=text, bytes=nbytes))


def _note_other_linears(recipe: Recipe, facts: ModelFacts, notes: list[Note]) -> None:
    """transformers replaces a layer whose type is `nn.Linear` itself (`integrations/bitsandbytes.py`
    `replace_with_bnb_linear`, since 5.0): not a model's own subclass, such as `FalconLinear`."""
    if recipe.quantisation.method not in ("bnb_4bit", "bnb_8bit"):
        return
    classes = {module.name: module.class_name for module in facts.modules}
    found = [
        fact
        for fact in facts.tensors
        if fact.kind == "parameter" and fact.role == "weight" and fact.name.endswith(".weight")
        and classes.get(fact.module, "").endswith("Linear") and classes[fact.module] != "Linear"
    ]  # fmt: skip
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


def _note_lora_without_experts(recipe: Recipe, facts: ModelFacts, experts: list[TensorFact], notes: list[Note]) -> None:
    if recipe.adapter.kind not in ("lora", "qlora") or not experts:
        return
    wrapped = any(".experts.lora_" in fact.name for fact in facts.tensors if fact.role == "adapter")
    if not wrapped and not any("experts.base_layer" in fact.name for fact in facts.tensors):
        text = (
            "LoRA does not reach the fused experts: they are 3-D parameters, not linear layers. "
            "`lora_target_parameters` (for example mlp.experts.gate_up_proj) adapts them"
        )
        notes.append(Note(kind="warning", key="lora_target_linear", text=text))


def _note_kbit_without_quantisation(recipe: Recipe, facts: ModelFacts, notes: list[Note]) -> None:
    if recipe.quantisation.method != "none" or not recipe.quantisation.kbit_preparation:
        return
    upcast = sum(
        f.nbytes for f in facts.tensors if f.role == "weight" and f.dtype == "float32" and f.kind == "parameter"
    )
    text = (
        f"nothing is quantised, yet k-bit preparation runs and casts the weights to fp32 ({format_bytes(upcast)}): "
        "load_in_4bit needs `adapter: qlora`, load_in_8bit needs `adapter: lora`"
    )
    notes.append(Note(kind="warning", key="load_in_4bit", text=text, bytes=upcast))


def _note_kept_on_gpu(recipe: Recipe, notes: list[Note]) -> None:
    if recipe.adapter.on_cpu:
        text = "the adapter and the embeddings are counted on the GPU, where the trainer moves them before training"
        notes.append(Note(kind="not_modelled", key="lora_on_cpu", text=text))
    if recipe.model.use_onebitllms:
        text = (
            "1.58-bit layers keep full weights: those are counted; their quantised copies in the forward pass are not"
        )
        notes.append(Note(kind="not_modelled", key="use_onebitllms", text=text))
