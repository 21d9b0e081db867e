"""axolotl's changes to peft while an adapter is added, as context managers that undo them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from axmem_trace.notes import Note, Notes
from axmem_trace.tracing.patching import replaced


@contextmanager
def peft_as_axolotl_changes_it(model: nn.Module, lora_config: Any, notes: Notes) -> Iterator[None]:
    """peft with axolotl's changes: Gemma 4's clippable linear layers, and the dropout of experts. This package's packed
    linear layers are registered too."""
    from axmem_trace.models.quantisation.packed_linear import PackedLinear

    if any(isinstance(module, PackedLinear) for module in model.modules()):
        from peft.tuners.lora.gptq import GPTQLoraLinear

        lora_config._register_custom_module({PackedLinear: GPTQLoraLinear})
    with ExitStack() as stack:
        stack.enter_context(_inside_clippable_linear())
        stack.enter_context(_parameters_in_given_order(lora_config))
        if lora_config.lora_dropout and _will_target_parameters(model, lora_config):
            stack.enter_context(_experts_without_dropout())
            text = "LoRA of fused experts has no dropout (peft's ParamWrapper can't have it); other LoRA layers have it"
            notes.append(Note(kind="warning", key="lora_dropout", text=text))
        yield


@contextmanager
def _parameters_in_given_order(lora_config: Any) -> Iterator[None]:
    """Wrap packed experts' parameters in the order of `target_parameters`; peft sorts them by name.

    Source: axolotl `monkeypatch/moe_quant.py` (`expert_param_order`); peft `tuners/tuners_utils.py`
    (`_inject_parameters`), which already takes plain parameters in the order of their definition.
    """
    from peft.tuners import tuners_utils

    given = list(lora_config.target_parameters or [])

    def sort(names: Iterable[Any], **kwargs: Any) -> list[Any]:
        names = list(names)
        return given if not kwargs and given and set(names) == set(given) else sorted(names, **kwargs)

    with replaced(tuners_utils, "sorted", sort, new=True):
        yield


@contextmanager
def _inside_clippable_linear() -> Iterator[None]:
    """Wrap the `nn.Linear` inside Gemma 4's `Gemma4ClippableLinear`, which peft does not know.

    Source: axolotl `loaders/adapter.py` `_patch_peft_clippable_linear`.
    """
    try:
        from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear
    except ImportError:
        yield
        return
    from peft.tuners.lora.model import LoraModel

    original = LoraModel._create_and_replace

    def create(self: Any, lora: Any, name: str, target: Any, target_name: str, parent: Any, **kwargs: Any) -> None:
        if isinstance(target, Gemma4ClippableLinear):
            original(self, lora, name, target.linear, "linear", target, **kwargs)
        else:
            original(self, lora, name, target, target_name, parent, **kwargs)

    with replaced(LoraModel, "_create_and_replace", create):
        yield


@contextmanager
def _experts_without_dropout() -> Iterator[None]:
    """Make `ParamWrapper` accept a configuration with dropout, and ignore the dropout.

    Source: axolotl `loaders/adapter.py` `_patch_peft_param_wrapper_dropout`.
    """
    from peft.tuners.lora.layer import ParamWrapper

    original = ParamWrapper.__init__

    def init(self: Any, base_layer: Any, adapter_name: str, parameter_name: str, config: Any, **kwargs: Any) -> None:
        config = copy.copy(config)
        config.lora_dropout = 0.0
        original(self, base_layer, adapter_name, parameter_name, config=config, **kwargs)

    with replaced(ParamWrapper, "__init__", init):
        yield


def _will_target_parameters(model: nn.Module, lora_config: Any) -> bool:
    """True if peft itself replaces old expert names (`w1`, ...) in `target_modules` by fused parameters.

    Source: axolotl `loaders/adapter.py` `_peft_will_auto_convert_target_params`, which tries it on a copy in the same way.
    """
    if lora_config.target_parameters:
        return False
    from peft.utils import transformers_weight_conversion as conversion

    probe = copy.deepcopy(lora_config)
    try:
        conversion.convert_peft_config_for_transformers(
            probe, model=model, conversions=conversion.get_model_conversion_mapping(model)
        )
    except Exception:  # peft raises various errors here; axolotl's check treats each of them as "no"
        return False
    return bool(probe.target_parameters)
