"""The optimizer by axolotl's name. Source: axolotl `core/builders/base.py` `_configure_optimizer`; transformers
`training_args.py` `OptimizerNames`, `trainer_optimizer.py`."""

from __future__ import annotations

import difflib
from typing import Any

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Optimizer
from axmem_trace.recipe.run import Implementation

TORCH_FOREACH = ("adamw_torch", "sgd", "adagrad", "rmsprop", "adopt_adamw", "adamc")
"""Optimizers that step with torch's `foreach` kernels on CUDA, by torch's own default."""
OPTIMIZER_NAMES = frozenset(
    """
    adamw_torch adamw_torch_fused adamw_hf adamw_apex_fused adamw_anyprecision adafactor adamw_torch_4bit
    adamw_torch_8bit ademamix sgd adagrad adamw_bnb_8bit adamw_8bit ademamix_8bit lion_8bit lion_32bit
    paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit
    rmsprop rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit galore_adamw galore_adamw_8bit galore_adafactor
    galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise lomo adalomo grokadamw
    schedule_free_radam schedule_free_adamw schedule_free_sgd apollo_adamw apollo_adamw_layerwise stable_adamw
    optimi_adamw ao_adamw_fp8 adopt_adamw adamc came_pytorch muon dion sinkgd polora flash_adamw flash_adam flash_sgd
    flash_sgdw flash_lion q_galore_adamw8bit muon_8bit scao
    """.split()
)
"""Names that can be estimated: transformers' and axolotl's own, and three that older releases had."""
NEW_OPTIMIZERS = {"scao": "0.20.0", "muon_8bit": "0.21.0"}
"""The first release that has them (`utils/schemas/enums.py` `CustomSupportedOptimizers`)."""
UNAVAILABLE = {
    "ao_adamw_4bit": ("axolotl lists the name and then fails with `Unhandled optimizer`", "adamw_torch_4bit"),
    "ao_adamw_8bit": ("axolotl lists the name and then fails with `Unhandled optimizer`", "adamw_torch_8bit"),
    "adamw_torch_xla": ("it runs on TPUs, not on CUDA", "adamw_torch_fused"),
    "adamw_torch_npu_fused": ("it runs on Ascend NPUs, not on CUDA", "adamw_torch_fused"),
    "lion_pytorch": ("axolotl removed it", "lion_32bit"),
}
"""Name -> why a run with it fails, and the optimizer to use instead."""
RETIRED = {
    "adamw_hf": "transformers 5 has removed its own AdamW, so axolotl 0.19 fails on the name",
    "adamw_apex_fused": "transformers 5 has removed apex's FusedAdam, so axolotl 0.19 fails on the name",
}
"""Names of older releases that are estimated as in these releases."""
EXTRA_KEYS = tuple(
    """
    adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_epsilon2 dion_lr dion_momentum dion_rank_fraction
    dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant
    qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size embedding_lr
    embedding_lr_scale loraplus_lr_ratio loraplus_lr_embedding
    """.split()
)
DEFAULT_LEARNING_RATE = 2e-4


def derive_optimizer(draft: Draft) -> Optimizer:
    """`Optimizer` from the keys.

    Raises:
        ConfigError: an unknown name, or arguments that cannot be read.
    """
    name = _name(draft)
    clip = draft.get("max_grad_norm")
    if clip is None:
        draft.reason("optimizer.max_grad_norm", 1.0, "the Trainer's default", origin="default")
    return Optimizer(
        name=name,
        implementation=_implementation(name),
        args=_args(draft),
        target_modules=_target_modules(draft, name),
        learning_rate=_learning_rate(draft),
        weight_decay=draft.get("weight_decay") or 0.0,
        max_grad_norm=1.0 if clip is None else max(0.0, clip),
        grokfast="grokfast" in draft.plugins,
        extra=_extra(draft, name),
    )


def _name(draft: Draft) -> str:
    name = draft.get("optimizer")
    if name in UNAVAILABLE:
        why, instead = UNAVAILABLE[name]
        draft.refuse(f"{why} (the figures are with {instead})", "optimizer", remedy=f"use `optimizer: {instead}`")
        draft.values["optimizer"] = name = instead
    if name in RETIRED:
        draft.refuse(RETIRED[name], "optimizer", remedy="use `optimizer: adamw_torch_fused`")
    known = {each for each in OPTIMIZER_NAMES if not draft.release.is_before(NEW_OPTIMIZERS.get(each, "0"))}
    if name not in known:
        nearest = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        raise draft.error(
            "neither axolotl nor transformers knows this optimizer" if name else "the optimizer is empty",
            "optimizer",
            accepted=", ".join(nearest or sorted(known)),
            remedy="use one of these, or remove the line to get adamw_torch_fused",
        )
    draft.reason_of_key("optimizer.name", name, "optimizer")
    if name == "muon_8bit":
        text = (
            "`optimizer: muon_8bit` is not modelled: the figures are with muon, whose momentum has the gradient's dtype; "
            "muon_8bit keeps it as 1 byte per weight between steps (axolotl 0.21 `utils/optimizers/muon_8bit.py`)"
        )
        draft.note("not_modelled", "optimizer", text, direction="less")
    return str(name)


def _extra(draft: Draft, name: str) -> dict[str, Any]:
    """Keys other than `optim_args`: those that are given, and the defaults of the optimizer's own keys."""
    own = {"q_galore_adamw8bit": "qgalore_", "dion": "dion_"}.get(name, "\0")
    values = {key: draft.get(key) for key in EXTRA_KEYS if key in draft.values or key.startswith(own)}
    return {key: value for key, value in values.items() if value is not None}


def _implementation(name: str) -> Implementation:
    if name in ("adamw_torch_fused", "adamw_apex_fused"):
        return "fused"
    if name == "adamw_hf":
        return "for-loop"
    return "foreach" if name in TORCH_FOREACH else "library"


def _args(draft: Draft) -> dict[str, Any]:
    """`optim_args`: a mapping, or `key=value,key=value`."""
    given = draft.get("optim_args")
    if not given:
        return {}
    if isinstance(given, dict):
        return {str(key): value for key, value in given.items()}
    parsed = {}
    for part in str(given).replace(" ", "").split(","):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise draft.error("optim_args is not of the form key=value,key=value", "optim_args")
        parsed[key] = value
    return parsed


def _target_modules(draft: Draft, name: str) -> tuple[str, ...] | str:
    given = draft.get("optim_target_modules")
    if given is None and name == "q_galore_adamw8bit":
        draft.reason("optimizer.target_modules", "attn, mlp", "axolotl's default for Q-GaLore", origin="default")
        return ("attn", "mlp")
    return given if isinstance(given, str) else tuple(given or ())


def _learning_rate(draft: Draft) -> float:
    value = draft.get("learning_rate")
    if value is None:
        return DEFAULT_LEARNING_RATE
    try:
        return float(value)
    except ValueError:
        problem = "axolotl refuses this: the learning rate is not a number"
        draft.refuse(problem, "learning_rate", remedy="write a number, such as 2e-4")
        return DEFAULT_LEARNING_RATE
