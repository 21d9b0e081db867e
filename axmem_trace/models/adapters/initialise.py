"""Initialisations that compute the adapter from the base weights, with peft's own code, on the device of the weights.

PiSSA and OLoRA run unchanged. MiCA skips meta weights, and LoftQ has a fixed device and needs scipy. Both are rebuilt here,
operator by operator, after peft 0.20 `tuners/lora/layer.py` `mica_init` and `utils/loftq_utils.py` `loftq_init`. EVA and
LoRA-GA need a pass over data that axolotl never runs, so peft uses its default initialisation instead. `orthogonal`
computes on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced

_BY_PEFT = ("pissa", "olora", "mica", "corda")
_ON_PLAIN_WEIGHTS = ("pissa", "mica", "corda", "loftq")
"""Initialisations that treat the stored weight as if it were not packed."""


def refuse_initialisation(recipe: Recipe) -> None:
    """Refuses an adapter with which the run fails before or in its first step.

    A 4-bit weight is one column of packed bytes, stored as bf16. PiSSA and LoftQ would factorise that column, so their
    matrices would not fit the layer's input. peft itself refuses a weight that is stored as integers.

    Raises:
        ConfigError: the initialisation needs plain weights and the base is packed, or it needs an even rank.
    """
    adapter, method = recipe.adapter, recipe.quantisation.method
    init = adapter.init.lower()
    packed = method == "bnb_4bit" or (method in ("gptq", "awq", "bnb_8bit") and not init.startswith("loftq"))
    if init.startswith(_ON_PLAIN_WEIGHTS) and packed:
        raise ConfigError(
            problem=f"the initialisation `{adapter.init}` reads the base weights, which are packed "
            f"({method}): peft fails, or creates matrices that do not fit the layers",
            key="peft_init_lora_weights",
            value=adapter.init,
            remedy="use an unquantised base model (`adapter: lora`), or remove the initialisation",
        )
    if init == "orthogonal" and adapter.rank % 2:
        raise ConfigError(
            problem="peft's orthogonal initialisation needs an even rank",
            key="lora_r",
            value=adapter.rank,
            remedy="make lora_r even",
        )


def init_keys(recipe: Recipe, notes: Notes) -> dict[str, Any]:
    """`init_lora_weights` for peft's `LoraConfig`; LoftQ is set later, by `initialised_here`."""
    init = recipe.adapter.init
    if init.lower().startswith((*_BY_PEFT, "loftq")):
        _note_solver(init, notes)
    if init == "gaussian" or init.lower().startswith(_BY_PEFT):
        return {"init_lora_weights": init}
    return {}


@contextmanager
def initialised_here(lora_config: Any, recipe: Recipe) -> Iterator[None]:
    """Inside this context, peft initialises weights on meta as it would on a GPU."""
    from peft.tuners.lora import layer

    if recipe.adapter.init.lower() == "loftq":
        lora_config.init_lora_weights = "loftq"
        lora_config.loftq_config = {"loftq_bits": recipe.adapter.loftq_bits, "loftq_iter": 1}
    with replaced(layer, "loftq_init", _loftq), replaced(layer.LoraLayer, "mica_init", _mica):
        yield


def _note_solver(init: str, notes: Notes) -> None:
    text = (
        f"the {init} initialisation runs one layer at a time while the model is loaded: copies of its weight, the "
        "factors and cuSOLVER's workspace are counted"
    )
    notes.append(Note(kind="ruled", key="peft_init_lora_weights", text=text))


def _mica(layer: Any, adapter_name: str) -> None:
    weight = layer.get_base_layer().weight
    dtype = weight.dtype
    weight = weight.to(torch.float32)
    factors = torch.linalg.svd(weight.data.T if layer.fan_in_fan_out else weight.data, full_matrices=False)
    layer.lora_B[adapter_name].weight.data = factors[0][:, -layer.r[adapter_name] :].contiguous().to(dtype)
    layer.lora_A[adapter_name].weight.data = layer.lora_A[adapter_name].weight.data.to(dtype)


@torch.no_grad()
def _loftq(weight: torch.Tensor, num_bits: int, reduced_rank: int, num_iter: int = 1) -> tuple[torch.Tensor, ...]:
    """One iteration, as axolotl requests it. Tensors are freed at the same points as in `loftq_init`. The residual is copied
    to the host and back before it is quantised."""
    dtype = weight.dtype
    weight = weight.to(torch.float32)
    res = weight.clone()
    packed, dequantised = _through_4bit(res) if num_bits == 4 else _through_int8(res)
    res = weight - dequantised
    left, right, factors = _low_rank(res, reduced_rank)
    del packed, factors
    return dequantised.to(dtype=dtype), right, left


def _low_rank(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    left = u @ torch.sqrt(torch.diag(s)[:, 0:rank])
    right = torch.sqrt(torch.diag(s)[0:rank, :]) @ vh
    return left, right, (u, s, vh)


def _through_4bit(res: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """`Params4bit(res.to("cpu"), compress_statistics=False).to("cuda")`, then back (bitsandbytes `nn/modules.py`)."""
    import bitsandbytes.functional as bnb

    arrived = torch.empty_like(res)
    packed, state = bnb.quantize_4bit(arrived, blocksize=64, compress_statistics=False, quant_type="nf4")
    del arrived
    return (packed, state), bnb.dequantize_4bit(packed, state)


def _through_int8(res: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """`Int8Params(res.to("cpu")).to(device)`: in fp16, one scale per row (`Int8Params._quantize`)."""
    arrived = torch.empty_like(res, dtype=torch.float16)
    packed = torch.empty_like(res, dtype=torch.int8), torch.empty(res.shape[0], dtype=torch.float32, device=res.device)
    del arrived
    scaled = packed[0] * packed[1].view(-1, 1)
    return packed, scaled * 7.874015718698502e-3
