"""Checkpointing and losses. Source: axolotl `utils/schemas/validation.py`,
`integrations/{liger,cut_cross_entropy,kernels}/args.py`."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.rule import Rule, given, is_selective, reentrant
from axmem_trace.recipe.run import VALIDATED_LORA_KERNEL_KEYS


def _matmul_saved(draft: Draft) -> bool:
    """True if an entry other than `attention` matches a matmul operator. An adapter changes its output in place."""
    operators = ("aten::mm", "aten::addmm", "aten::matmul", "aten::bmm")
    saved = draft.sub("selective_checkpointing").get("save") or []
    return any(spec != "attention" and any(spec in name for name in operators) for spec in saved)


CHECKPOINTING_RULES = (
    Rule(
        "gradient_checkpointing_kwargs",
        lambda d: d.get("unfrozen_parameters") and reentrant(d) is True,
        "use_reentrant must be false with a partially frozen model (unfrozen_parameters)",
        "set `use_reentrant: false`",
        figures_with={"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    Rule(
        "activation_offloading",
        lambda d: d.get("activation_offloading") and not d.get("gradient_checkpointing"),
        "activation_offloading requires gradient_checkpointing",
        "set `gradient_checkpointing: true`",
        figures_with={"gradient_checkpointing": True},
    ),
    Rule(
        "selective_checkpointing",
        lambda d: is_selective(d) and not d.get("gradient_checkpointing"),
        "selective_checkpointing requires gradient_checkpointing",
        "set `gradient_checkpointing: true`",
        figures_with={"gradient_checkpointing": True},
    ),
    Rule(
        "selective_checkpointing",
        lambda d: is_selective(d) and reentrant(d),
        "selective_checkpointing requires non-reentrant checkpointing",
        "set `use_reentrant: false` under gradient_checkpointing_kwargs",
    ),
    Rule(
        "selective_checkpointing",
        lambda d: is_selective(d) and d.get("activation_offloading") not in (None, False, "hidden_states"),
        "selective_checkpointing can only be used with activation_offloading: hidden_states",
        "remove activation_offloading",
        figures_with={"activation_offloading": False},
    ),
    Rule(
        "selective_checkpointing",
        lambda d: d.get("adapter") and _matmul_saved(d),
        "selective_checkpointing.save names matmul operators, which an adapter mutates in place",
        "use `save: [attention]`",
        figures_with={"selective_checkpointing": {"save": ["attention"]}},
        until="0.19.0",
    ),
    Rule(
        "gradient_checkpointing",
        lambda d: "mpt" in str(d.get("base_model")).lower() and d.get("gradient_checkpointing"),
        "gradient_checkpointing is not supported for MPT models, and axolotl treats every base_model with `mpt` in its "
        "name or path as an MPT model (`check_mpt_checkpointing`)",
        "set `gradient_checkpointing: false`, or give the model a path without these letters",
    ),
    Rule(
        "activation_offloading",
        lambda d: d.get("activation_offloading") == "hidden_states" and reentrant(d) and d.get("unfrozen_parameters"),
        "hidden_states offloading with reentrant checkpointing is incompatible with unfrozen_parameters",
        "set `use_reentrant: false`",
        figures_with={"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
)

LOSS_RULES = (
    Rule(
        "liger_glu_activation",
        lambda d: (
            d.get("liger_glu_activation")
            and d.values.get("tiled_mlp") is True
            and not d.values.get("tiled_mlp_use_original_mlp")
        ),
        "liger_glu_activation and tiled_mlp need tiled_mlp_use_original_mlp: true",
        "add `tiled_mlp_use_original_mlp: true`",
    ),
    Rule(
        "liger_use_token_scaling",
        lambda d: d.get("liger_use_token_scaling") and not d.get("liger_fused_linear_cross_entropy"),
        "liger_use_token_scaling requires liger_fused_linear_cross_entropy",
        "set it too",
        figures_with={"liger_use_token_scaling": False},
    ),
    Rule(
        "cut_cross_entropy",
        lambda d: (
            d.is_live("cut_cross_entropy")
            and d.values.get("cut_cross_entropy")
            and not (d.values.get("bf16") or d.values.get("fp16"))
        ),
        "Cut Cross Entropy requires fp16 or bf16 training",
        "set `bf16: true` or `bf16: auto`",
    ),
    Rule(
        "chunked_cross_entropy",
        lambda d: "cut_cross_entropy" in d.plugins and d.get("chunked_cross_entropy"),
        "the Cut Cross Entropy plugin cannot be used with chunked_cross_entropy",
        "remove one of them",
        decides_memory=True,
    ),
    Rule(
        "nvfp4_merge_aware",
        lambda d: d.get("nvfp4_merge_aware") and (not d.get("use_sonicmoe") or d.get("adapter") != "lora"),
        "nvfp4_merge_aware requires use_sonicmoe: true and adapter: lora",
        "set both, or remove nvfp4_merge_aware",
        until="0.19.0",
    ),
    Rule(
        "nvfp4_merge_aware",
        lambda d: d.get("nvfp4_merge_aware") and any(d.get(key) is True for key in VALIDATED_LORA_KERNEL_KEYS),
        "nvfp4_merge_aware is incompatible with the fused LoRA kernels",
        "remove the kernels' keys",
        until="0.19.0",
    ),
    Rule(
        "use_scattermoe",
        lambda d: d.get("use_scattermoe") and d.get("use_sonicmoe"),
        "use_scattermoe and use_sonicmoe cannot be used together",
        "keep one of them",
        decides_memory=True,
    ),
)

_CROSS_ENTROPY = (
    "cut_cross_entropy",
    "chunked_cross_entropy",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
)


def refuse_cross_entropies(draft: Draft) -> None:
    """`check_cross_entropy_conflicts`."""
    on = [key for key in _CROSS_ENTROPY if given(draft, key)]
    if len(on) > 1:
        problem = f"axolotl refuses this: only one cross-entropy optimisation can be on, found {', '.join(on)}"
        draft.fail(draft.error(problem, on[1], remedy="keep one of them"))
