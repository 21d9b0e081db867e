"""Which modules an adapter can wrap, by axolotl's and peft's rules, and the errors if none matches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from axmem_trace.errors import ConfigError, in_one_line
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe

_NOT_LINEAR = "LlamaLinearScalingRotaryEmbedding"
_FUSED_NAMES = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
"""Name of an expert's projection in transformers 4 -> name of the fused parameter that contains it in transformers 5."""
_CLASSIFIER_HEADS = ("classifier", "score")
_REFUSED_LAYERS = re.compile(r"Incompatible modules: \{(.+?)\}")
"""peft `tuners_utils.py` `_check_lora_target_modules_mamba`: layers whose weight Mamba's kernels read directly."""


def find_linear_names(model: nn.Module, head: str) -> list[str]:
    """The targets of `lora_target_linear`: last name components of all linear layers except the output head, `head`.

    Source: axolotl `loaders/adapter.py` `find_all_linear_names`. A class with `Linear` in its name counts as a linear layer.
    Linear layers of vision towers are included. Fused experts are parameters, so they are not.
    """
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)}
    names.discard(head)
    return sorted(names)


def expand_parametrised_targets(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """`lora_target_parameters` with the full path of each matching parameter that is parametrised (quantised experts).

    peft matches plain parameters by suffix, but parametrised ones only by full path. The name of an unfused parameter means
    the fused one. In each module, the order is that of the definition; the adapters are nested in this order.
    Source: axolotl `monkeypatch/moe_quant.py` `patch_peft_target_parameters_matching`.
    """
    targets = list(targets)
    expanded: dict[str, None] = {}
    for module_name, module in model.named_modules():
        chains: Any = getattr(module, "parametrizations", None)
        if chains is None:
            continue
        asked = {target.rpartition(".")[2] for target in targets if _has_path(module_name, target.rpartition(".")[0])}
        asked |= {_FUSED_NAMES[name] for name in asked if name in _FUSED_NAMES and name not in chains}
        expanded |= dict.fromkeys(f"{module_name}.{name}" for name in chains if name in asked)
    return list(expanded | dict.fromkeys(targets))


def _has_path(module_name: str, path: str) -> bool:
    return module_name == path or module_name.endswith(f".{path}")


def note_unmatched_targets(names: Iterable[str], peft_model: Any, recipe: Recipe, notes: Notes) -> None:
    """Warn of each entry of `lora_target_modules` that matches no module: peft ignores it silently.

    Args:
        names: the names of the model's modules before peft wrapped them.
        peft_model: its configuration no longer has targets that peft has replaced (names of experts in transformers 4).
    """
    names = tuple(names)
    left = peft_model.peft_config[peft_model.active_adapter].target_modules or ()
    given = recipe.adapter.target_modules
    for target in () if isinstance(given, str) or isinstance(left, str) else given:
        if target not in left or any(f".{name}".endswith(f".{target}") for name in names):
            continue
        places = [found for name, found in recipe.written.items() if name.startswith("lora_target_modules.")]
        line = next((found.line for found in places if found.value == target), 0)
        text = f"no module is called `{target}`: peft ignores this target. Linear layers of this model: "
        text += ", ".join(_linear_names(peft_model))
        notes.append(Note(kind="warning", key="lora_target_modules", text=text, line=line))


def no_target_error(model: nn.Module, key: str, value: object, error: Exception) -> ConfigError:
    """The error if peft finds nothing to wrap, or refuses a layer that it finds. It lists the names that the model has."""
    linears = _linear_names(model)
    refused = _REFUSED_LAYERS.search(str(error))
    rest = ", ".join(name for name in linears if not refused or name not in refused[1])
    remedy = "name some of these in lora_target_modules, or set lora_target_linear: true"
    if refused or key == "lora_target_linear":
        remedy = f"peft can adapt only these: `lora_target_modules: [{rest}]`, without lora_target_linear"
    return ConfigError(
        problem="the adapter's targets can't be used with this model",
        key=key,
        value=value,
        accepted="linear layers of this model: " + ", ".join(linears),
        details=(f"{type(error).__name__}: {in_one_line(error)}",),
        remedy=remedy,
    )


def head_adapted_error(model: nn.Module, key: str, value: object, error: Exception) -> ConfigError:
    """The error for a token classifier's head with LoRA: peft trains the head in full, and fails if it has LoRA as well.

    Source: peft `peft_model.py`. `PeftModelForSequenceClassification` adds the head to `modules_to_save` before it adds the
    adapter; `PeftModelForTokenClassification` does it afterwards.
    """
    rest = ", ".join(name for name in _linear_names(model) if name not in _CLASSIFIER_HEADS)
    return ConfigError(
        problem="the targets include a layer that peft trains in full (a classifier's head, or one of "
        "lora_modules_to_save)",
        key=key,
        value=value,
        details=(f"{type(error).__name__}: {in_one_line(error)}",),
        remedy=f"exclude that layer: `lora_target_modules: [{rest}]`, without lora_target_linear",
    )


def _linear_names(model: nn.Module) -> list[str]:
    """Last name components of the modules that peft can adapt, except the output head. Wrapped modules are included.

    A class with `Linear` in its name may be something else: OLMo-Hybrid's decoder layers are
    `...LinearAttentionDecoderLayer`, and all classes of Kimi-Linear have the word. A number (in an `nn.Sequential`) can also
    be the name of a decoder layer.
    """
    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    names = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or hasattr(module, "qweight")) and module is not head and ".lora_" not in name
    }
    return sorted(name for name in names if not name.isdigit())


def _is_linear(module: nn.Module) -> bool:
    cls = type(module).__name__
    return isinstance(module, nn.Linear) or ("Linear" in cls and cls != _NOT_LINEAR)
