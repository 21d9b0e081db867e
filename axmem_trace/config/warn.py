"""Effects of the configuration that its author may not expect: warnings with the line of the key."""

from __future__ import annotations

from axmem_trace.config.alternatives import UNQUANTISED
from axmem_trace.config.derive.attention import PACKING_KERNELS, base_name
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Recipe


def note_warnings(draft: Draft, recipe: Recipe) -> None:
    """Adds a warning for each such effect."""
    for remark in recipe.gpu.remarks:
        draft.note("warning", "--gpu", remark)
    _inexact_base_model(draft, recipe)
    _unquantised_4bit(draft, recipe)
    _fp32_residual(draft, recipe)
    _packing(draft, recipe)
    _fp16_full_finetune(draft, recipe)
    _frozen_ranges(draft, recipe)
    _ignored_evaluation(draft, recipe)
    _compiled_gradients(draft, recipe)


def _inexact_base_model(draft: Draft, recipe: Recipe) -> None:
    base = recipe.model.base
    if base.caution:
        text = f"{base.caution}. Check with --hub, or name a local directory with the real config.json"
        draft.note("warning", "base_model", text)


def _unquantised_4bit(draft: Draft, recipe: Recipe) -> None:
    if draft.get("adapter") == "lora" and draft.get("load_in_4bit") and not draft.get("load_in_8bit"):
        text = f"{UNQUANTISED}: since 0.13 axolotl quantises to 4 bit for `adapter: qlora` only"
        if recipe.quantisation.method == "none" and recipe.quantisation.kbit_preparation:
            text += ", and then peft's preparation casts every weight to fp32 (4 bytes each)"
        elif recipe.quantisation.method != "none":
            return
        draft.note("warning", "load_in_4bit", f"{text}. Until 0.12 it was loaded in 4 bit")


def _fp32_residual(draft: Draft, recipe: Recipe) -> None:
    precision = recipe.precision
    full = recipe.adapter.kind == "none"
    if full and precision.upcast_before and not precision.cast_back and precision.load_dtype != "float32":
        text = (
            "a full fine-tune with this attention keeps embeddings, head and norms in fp32, so the residual stream is fp32 "
            "too: about a fifth more activations, and 16 bytes per embedding weight. With "
            "`attn_implementation: flash_attention_2` all of it is in half precision"
        )
        draft.note(
            "warning", "attn_implementation", text, line=draft.line("attn_implementation") or draft.line("base_model")
        )


def _packing(draft: Draft, recipe: Recipe) -> None:
    if not draft.get("sample_packing"):
        return
    asked = draft.get("attn_implementation")
    if asked is None:
        text = (
            "`sample_packing` without attn_implementation: the samples of a row attend to each other, and the row keeps its "
            "padding mask. Set `attn_implementation: flash_attention_2` (or `sdpa`)"
        )
        draft.note("warning", "sample_packing", text)
    elif recipe.attention.kernel in ("sdpa", "eager") and base_name(asked) not in PACKING_KERNELS:
        text = (
            f"packed rows under {recipe.attention.kernel} attention need a mask of sequence x sequence: "
            "`attn_implementation: flash_attention_2` needs none"
        )
        draft.note("warning", "sample_packing", text)


def _fp16_full_finetune(draft: Draft, recipe: Recipe) -> None:
    precision = recipe.precision
    if recipe.adapter.kind == "none" and precision.grad_scaler and precision.load_dtype == "float16":
        text = "a full fine-tune with fp16 weights fails at the first step: torch cannot unscale fp16 gradients"
        draft.refuse(text, "fp16", remedy="set `bf16: true`")


def _frozen_ranges(draft: Draft, recipe: Recipe) -> None:
    ranged = [
        pattern for pattern in recipe.freezing.unfrozen if pattern.endswith("]") and "[" in pattern and ":" in pattern
    ]
    if ranged:
        text = (
            f"the range in {ranged[0]!r} saves no memory: the whole parameter has gradients and optimizer states, and "
            "axolotl sets the gradients of the frozen part to zero"
        )
        draft.note("warning", "unfrozen_parameters", text)


def _ignored_evaluation(draft: Draft, recipe: Recipe) -> None:
    if draft.get("val_set_size") and not recipe.evaluation.enabled and draft.get("evals_per_epoch"):
        text = recipe.reasons["evaluation.enabled"].text
        draft.note("warning", "evals_per_epoch", text)


def _compiled_gradients(draft: Draft, recipe: Recipe) -> None:
    """Note that compiled gradients exist twice with gradient accumulation.

    A compiled backward is one node of the graph. It returns the gradients of all its parameters together, and autograd then
    adds them to the earlier ones (torch 2.14 torch/_functorch/_aot_autograd/runtime_wrappers.py
    `CompiledFunction.backward`; torch/csrc/autograd/functions/accumulate_grad.h).
    """
    keys = [key for key in ("torch_compile", "torch_compile_regional") if draft.get(key)]
    if keys and recipe.batch.gradient_accumulation_steps > 1:
        text = (
            f"`{keys[-1]}` with gradient accumulation is not in the figures: a compiled backward allocates a second set of "
            "gradients of all compiled parameters before it adds them to those of earlier batches"
        )
        draft.note("not_modelled", keys[-1], text, direction="more")
