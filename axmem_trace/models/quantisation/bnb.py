"""bitsandbytes 4-bit and 8-bit weights, packed on meta as they are on a GPU after loading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.models.built import StateTensor
from axmem_trace.recipe.recipe import Quantisation


def make_bnb_quantizer(quantisation: Quantisation) -> Any:
    """transformers' own quantizer for a bitsandbytes recipe (nf4/fp4 or int8), as `from_pretrained` would choose it."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

    skip = list(quantisation.skip_modules) or None
    if quantisation.method == "bnb_8bit":
        config = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=quantisation.int8_threshold, llm_int8_skip_modules=skip
        )
        return Bnb8BitHfQuantizer(config, pre_quantized=False)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skip,
        bnb_4bit_quant_type=quantisation.quant_type,
        bnb_4bit_use_double_quant=quantisation.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantisation.compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, quantisation.storage_dtype),
    )
    return Bnb4BitHfQuantizer(config, pre_quantized=False)


def pack_bnb_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the weights of `Linear4bit` and `Linear8bitLt` modules by packed ones on meta.

    `dtype` is that of the weights before they are quantised: `QuantState.dtype`, to which the forward pass dequantises
    them (bitsandbytes `functional.py` `dequantize_4bit`).

    Raises:
        ConfigError: a quantised layer shares its weight with the embedding, which is not quantised.
    """
    import bitsandbytes as bnb

    with unchanged_code_tables():
        for name, module in model.named_modules():
            is_quantised = isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))
            if is_quantised and not isinstance(module.weight, (bnb.nn.Params4bit, bnb.nn.Int8Params)):
                raise _tied_error(name)
            if isinstance(module, bnb.nn.Linear4bit):
                _pack_4bit(module, dtype)
            elif isinstance(module, bnb.nn.Linear8bitLt):
                _pack_8bit(module)


def _tied_error(name: str) -> ConfigError:
    """The error for a quantised layer that got the embedding's plain weight afterwards.

    The user's skip list replaces the default one, which contains the tied head (transformers `quantizers/base.py`
    `get_modules_to_not_convert`). In the layer's first forward, bitsandbytes finds no quantisation state (`nn/modules.py`
    `fix_4bit_weight_quant_state_from_module`), or no `CB`.
    """
    return ConfigError(
        problem=f"{name} shares its weight with the embedding, but it is not in the list of layers that must not be "
        "quantised: the run would fail in its first step",
        key="bnb_config_kwargs",
        remedy=f"add it: `bnb_config_kwargs: {{llm_int8_skip_modules: [{name}, ...]}}`",
    )


def _pack_4bit(linear: Any, dtype: torch.dtype) -> None:
    """Packs a weight as `Params4bit._quantize` (bitsandbytes `nn/modules.py`) does while it is moved to the GPU."""
    import bitsandbytes as bnb

    weight = linear.weight
    full = torch.empty(linear.out_features, linear.in_features, dtype=dtype, device="meta")
    packed, state = bnb.functional.quantize_4bit(
        full,
        blocksize=weight.blocksize,
        compress_statistics=weight.compress_statistics,
        quant_type=weight.quant_type,
        quant_storage=weight.quant_storage,
    )
    linear.weight = bnb.nn.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=weight.blocksize,
        compress_statistics=weight.compress_statistics,
        quant_type=weight.quant_type,
        quant_storage=weight.quant_storage,
        module=linear,
        bnb_quantized=True,
    )
    linear.quant_state = state


def _pack_8bit(linear: Any) -> None:
    """Packs a weight as `Int8Params._quantize` does: one byte per weight, and one fp32 scale (`SCB`) per output row."""
    import bitsandbytes as bnb

    packed = torch.empty(linear.out_features, linear.in_features, dtype=torch.int8, device="meta")
    scales = torch.empty(linear.out_features, dtype=torch.float32, device="meta")
    linear.weight = bnb.nn.Int8Params(packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scales)


def iterate_bnb_states(module_name: str, module: nn.Module) -> Iterator[StateTensor]:
    """The tensors stored with one module's packed weight: `absmax`, code tables and nested state, or int8's `SCB`.

    The state is an attribute of the weight, or of bitsandbytes' parametrisation of fused expert weights
    (`nn/parametrize.py`).
    """
    weight = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    if state is not None:
        yield from _quant_state_tensors(f"{module_name}.weight", module_name, state)
    elif "quant_state" in module.__dict__ and module.quant_state is not None:
        yield from _quant_state_tensors(module_name, module_name, module.quant_state)
    for holder in (weight, getattr(module, "state", None)):
        scales = getattr(holder, "SCB", None)
        if isinstance(scales, torch.Tensor):
            yield StateTensor(f"{module_name}.weight.SCB", module_name, scales)


def _quant_state_tensors(prefix: str, module_name: str, state: Any) -> Iterator[StateTensor]:
    yield StateTensor(f"{prefix}.absmax", module_name, state.absmax)
    yield StateTensor(f"{prefix}.quant_map", module_name, state.code)
    if state.nested:
        yield StateTensor(f"{prefix}.nested_offset", module_name, state.offset)
        yield StateTensor(f"{prefix}.nested_absmax", module_name, state.state2.absmax)
        yield StateTensor(f"{prefix}.nested_quant_map", module_name, state.state2.code)


@contextmanager
def unchanged_code_tables() -> Iterator[None]:
    """Restores bitsandbytes' code tables afterwards. bitsandbytes keeps them on the device of their first use; a table on
    meta would break later use of real tensors."""
    from bitsandbytes import functional

    before = dict(functional.name2qmap)
    try:
        yield
    finally:
        functional.name2qmap.clear()
        functional.name2qmap.update(before)
