"""Parameter groups, as transformers and axolotl make them.

Groups change the needed memory: torch's multi-tensor code makes its temporaries for one group at a time. With two
groups of half the parameters, the temporaries are half as large as with one group.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import nn

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.optimizers.clipping import group_by_mesh

_UNDECAYED_PATTERNS = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""transformers/trainer.py, `Trainer.get_decay_parameter_names` (the same in 5.16 and 5.23)."""


def decay_parameter_names(module: nn.Module) -> set[str]:
    """Names of the parameters with weight decay (transformers, `Trainer.get_decay_parameter_names`)."""
    from transformers.trainer_pt_utils import get_parameter_names

    return set(get_parameter_names(module, [nn.LayerNorm], _UNDECAYED_PATTERNS))


def uses_axolotl_groups(recipe: Recipe, *, custom: bool) -> bool:
    """True if axolotl's own grouping replaces transformers' (axolotl, core/trainers/mixins/optimizer.py,
    `OptimizerMixin.create_optimizer`)."""
    extra = recipe.optimizer.extra
    keys = ("loraplus_lr_ratio", "embedding_lr_scale", "embedding_lr", "lr_groups")
    return custom or recipe.adapter.loraplus or any(extra.get(key) is not None for key in keys)


def make_param_groups(recipe: Recipe, module: nn.Module, *, custom: bool) -> list[dict[str, Any]]:
    """The groups of the run's optimizer, without empty ones.

    Args:
        recipe: the recipe of the run; `optimizer.extra` may contain `embedding_lr`, `embedding_lr_scale`, `lr_groups`,
            `loraplus_lr_ratio`, `loraplus_lr_embedding`.
        module: the module whose trainable parameters are grouped.
        custom: True if axolotl itself builds the optimizer.
    """
    if recipe.adapter.loraplus or recipe.optimizer.extra.get("loraplus_lr_ratio") is not None:
        groups = _loraplus_groups(recipe, module)
    elif uses_axolotl_groups(recipe, custom=custom):
        groups = _axolotl_groups(recipe, module)
    else:
        groups = _transformers_groups(recipe, module)
    return [group for group in groups if group["params"]] or groups[:1]  # torch refuses an empty list of groups


def _transformers_groups(recipe: Recipe, module: nn.Module) -> list[dict[str, Any]]:
    """transformers/trainer.py, `Trainer.create_optimizer`: with and without weight decay."""
    decayed = decay_parameter_names(module)
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = (
        ([p for name, p in named if name in decayed], recipe.optimizer.weight_decay),
        ([p for name, p in named if name not in decayed], 0.0),
    )
    return [{"params": same, "weight_decay": decay} for group, decay in groups for same in group_by_mesh(group) or [[]]]


def _axolotl_groups(recipe: Recipe, module: nn.Module) -> list[dict[str, Any]]:
    """axolotl, core/trainers/mixins/optimizer.py, `create_optimizer_grouped_parameters`: a group for embeddings
    and heads, and one more for each entry of `lr_groups`."""
    extra, base = recipe.optimizer.extra, recipe.optimizer.learning_rate
    decayed = decay_parameter_names(module)
    lr_groups = extra.get("lr_groups") or ()
    members: dict[str, list[nn.Parameter]] = {"decay": [], "embeddings": [], "no_decay": []}
    members.update((f"lr_group {group['name']}", []) for group in lr_groups)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members[_axolotl_group_of(name, name in decayed, lr_groups)].append(parameter)
    embedding_lr = base * extra["embedding_lr_scale"] if extra.get("embedding_lr_scale") else extra.get("embedding_lr")
    decay = recipe.optimizer.weight_decay
    return [
        {"params": members["decay"], "weight_decay": decay, "lr": base},
        {"params": members["embeddings"], "weight_decay": 0.0, "lr": float(embedding_lr or base)},
        {"params": members["no_decay"], "weight_decay": 0.0, "lr": base},
        *(
            {"params": members[f"lr_group {group['name']}"], "weight_decay": decay, "lr": float(group["lr"])}
            for group in lr_groups
        ),
    ]


def _axolotl_group_of(name: str, decayed: bool, lr_groups: Any) -> str:
    if name.endswith("modules_to_save.default.weight") or "embed_tokens" in name or "lm_head" in name:
        return "embeddings"
    if not decayed:
        return "no_decay"
    for group in lr_groups:
        if any(part in name for part in group["modules"]):
            return f"lr_group {group['name']}"
    return "decay"


def _loraplus_groups(recipe: Recipe, module: nn.Module) -> list[dict[str, Any]]:
    """peft/optimizers/loraplus.py, `create_loraplus_optimizer`: A matrices, embeddings, decaying B and other B."""
    from peft.tuners.lora.layer import Embedding
    from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
    from transformers.trainer_pt_utils import get_parameter_names

    extra, base = recipe.optimizer.extra, recipe.optimizer.learning_rate
    decayed = {name for name in get_parameter_names(module, ALL_LAYERNORM_LAYERS) if "bias" not in name}
    members: dict[str, list[nn.Parameter]] = {"A": [], "embedding": [], "B": [], "B_no_decay": []}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = ".".join(name.split(".")[:-2])
        if owner and isinstance(attrgetter(owner)(module), Embedding):
            members["embedding"].append(parameter)
        elif "lora_B" in name or parameter.ndim == 1:
            members["B" if name in decayed else "B_no_decay"].append(parameter)
        else:
            members["A"].append(parameter)
    fast = base * float(extra.get("loraplus_lr_ratio") or 1.0)
    slow = float(extra.get("loraplus_lr_embedding") or 1e-6)
    rates = {"A": base, "embedding": slow, "B": fast, "B_no_decay": fast}
    return [{"params": members[key], "weight_decay": 0.0, "lr": rates[key]} for key in rates]
