"""State bytes of every optimizer, tensor by tensor, compared with formulas written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support import paths
from support.optimizer_steps import SHAPES, make_llama, on_meta, recipe_of
from torch import nn

from axmem_trace.config.derive.optimizer import OPTIMIZER_NAMES
from axmem_trace.errors import ConfigError
from axmem_trace.training.optimizers import build_optimizer, known_optimizers

LORA_SHAPES = {
    "down_proj.lora_A": (8, 129),
    "down_proj.lora_B": (64, 8),
    "q_proj.lora_A": (8, 64),
    "q_proj.lora_B": (64, 8),
}
"""LoRA matrices of rank 8 in fp32. Every tensor is smaller than any optimizer's threshold."""
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 8, "lora_target_modules": ["q_proj", "down_proj"]}
EMBEDDINGS = ("embed_tokens", "lm_head")
RANK = 8
Bytes = Callable[[str, tuple[int, ...], int], int]
"""State bytes as a function of a parameter's name, shape and bytes per element."""


def copies(count: int, nbytes: int | None = None) -> Bytes:
    """`count` states of the parameter's shape, in its dtype or with `nbytes` for each element."""
    return lambda name, shape, size: count * math.prod(shape) * (nbytes or size)


def bnb_8bit(count: int) -> Bytes:
    """bitsandbytes/optim/optimizer.py: 1 byte for each element and an fp32 absmax for every 256 elements; fp32 below
    4096 elements. transformers excludes the input embedding (not the head): its states are fp32."""

    def nbytes(name: str, shape: tuple[int, ...], size: int) -> int:
        elements = math.prod(shape)
        if elements < 4096 or name == "embed_tokens":
            return count * 4 * elements
        return count * (elements + 4 * math.ceil(elements / 256))

    return nbytes


def torchao(bits: int, table: int) -> Bytes:
    """torchao/optim/adam.py: codes, an fp32 scale for each block of 256, and a lookup table. States have the
    parameter's dtype if there are fewer than 4096 elements, or if 256 does not divide their number. A counter in host
    memory is not counted."""

    def nbytes(name: str, shape: tuple[int, ...], size: int) -> int:
        elements = math.prod(shape)
        if elements < 4096 or elements % 256:
            return 2 * elements * size
        return 2 * (elements * bits // 8 + elements // 256 * 4 + table)

    return nbytes


def flash(states: int) -> Bytes:
    """flashoptim/optimizers.py: 1 byte for each element, an fp16 scale for every 32 elements, and one byte that extends
    bf16 to 24 bits."""
    return lambda name, shape, size: (
        states * (math.prod(shape) + 2 * math.ceil(math.prod(shape) / 32)) + math.prod(shape)
    )


def factored(first_moment: int, factors: int) -> Bytes:
    """fp32 row and column sums for matrices, and a full second moment for vectors; in addition `first_moment` full
    states."""

    def nbytes(name: str, shape: tuple[int, ...], size: int) -> int:
        second = factors * sum(shape) * 4 if len(shape) == 2 else 4 * shape[0]
        return second + first_moment * math.prod(shape) * 4

    return nbytes


def rms(per_tensor: Bytes) -> Bytes:
    """The states, and one 0-d fp32 root mean square per parameter, calculated from fp32 copies."""
    return lambda name, shape, size: per_tensor(name, shape, size) + 4


def came(name: str, shape: tuple[int, ...], size: int) -> int:
    """came_pytorch/CAME.py: the root mean square is calculated from the weight itself, in the weight's dtype."""
    return factored(1, 2)(name, shape, size) + size


def is_projected(name: str) -> bool:
    return "_proj" in name


def low_rank(rest: Bytes, states: Callable[[tuple[int, ...], int], int], *, basis: bool = True) -> Bytes:
    """States of the rank-8 projection of an (R, C) gradient along its longer side, and the basis (8, shorter side).

    An fp32 basis is a view of the whole matrix of singular vectors, min(R, C) squared.
    """

    def nbytes(name: str, shape: tuple[int, ...], size: int) -> int:
        if not is_projected(name):
            return rest(name, shape, size)
        longer, shorter = max(shape), min(shape)
        wide = shorter if size == 4 and basis else RANK
        return wide * shorter * size + states((longer, RANK), size)

    return nbytes


def two_low_rank(image: tuple[int, ...], size: int) -> int:
    return 2 * math.prod(image) * size


def apollo(name: str, shape: tuple[int, ...], size: int) -> int:
    """A random basis is not a view. The last norm of the scaled gradient is kept."""
    nbytes = low_rank(copies(2), two_low_rank, basis=False)(name, shape, size)
    return nbytes + (size if is_projected(name) else 0)


def galore_adafactor(name: str, shape: tuple[int, ...], size: int) -> int:
    """The gradient is cast to fp32 before it is projected, so the basis is a view for every dtype of the parameter."""
    return low_rank(rms(factored(0, 1)), adagalore)(name, shape, 4)


def adagalore(image: tuple[int, ...], size: int) -> int:
    return sum(image) * 4 + 4


def matrices(of_matrix: Bytes, of_embedding: Bytes, of_vector: Bytes) -> Bytes:
    """Muon and similar optimizers: one formula for hidden matrices, another for embeddings and heads."""

    def nbytes(name: str, shape: tuple[int, ...], size: int) -> int:
        kind = of_vector if len(shape) == 1 else of_embedding if name in EMBEDDINGS else of_matrix
        return kind(name, shape, size)

    return nbytes


def dion(name: str, shape: tuple[int, ...], size: int) -> int:
    """Momentum, and a basis of full rank on the shorter side: min(R, C) squared."""
    return (math.prod(shape) + min(shape) ** 2) * size


NOTHING = copies(0)
FORMULAS: dict[str, Bytes] = {
    # torch and similar optimizers: states in the parameter's dtype
    "adamw_torch": copies(2), "adamc": copies(2), "adopt_adamw": copies(2), "adamw_hf": copies(2), "sgd": NOTHING,
    "adagrad": copies(1), "rmsprop": copies(1), "schedule_free_adamw": copies(2), "schedule_free_radam": copies(2),
    "schedule_free_sgd": copies(1), "lomo": NOTHING, "grokadamw": NOTHING,
    # the fused kernel needs its fp32 counter on the GPU
    "adamw_torch_fused": lambda name, shape, size: copies(2)(name, shape, size) + 4,
    # fp32 states for every dtype of the parameter
    "adamw_apex_fused": copies(2, 4), "adamw_anyprecision": copies(2, 4), "lion_32bit": copies(1, 4),
    "rmsprop_bnb": copies(1, 4), "rmsprop_bnb_32bit": copies(1, 4), "ademamix": copies(3, 4),
    "paged_adamw_32bit": copies(2, 4), "paged_lion_32bit": copies(1, 4), "paged_ademamix_32bit": copies(3, 4),
    # a Kahan compensation for bf16; a squared epsilon
    "optimi_adamw": lambda name, shape, size: copies(3 if size == 2 else 2)(name, shape, size),
    "stable_adamw": lambda name, shape, size: copies(3 if size == 2 else 2)(name, shape, size) + size,
    "adamw_bnb_8bit": bnb_8bit(2), "adamw_8bit": bnb_8bit(2), "paged_adamw_8bit": bnb_8bit(2), "lion_8bit": bnb_8bit(1),
    "paged_lion_8bit": bnb_8bit(1), "rmsprop_bnb_8bit": bnb_8bit(1), "ademamix_8bit": bnb_8bit(3),
    "paged_ademamix_8bit": bnb_8bit(3),
    "adamw_torch_8bit": torchao(8, 1024), "adamw_torch_4bit": torchao(4, 64), "ao_adamw_fp8": torchao(8, 0),
    "flash_adamw": flash(2), "flash_adam": flash(2), "flash_lion": flash(1), "flash_sgd": flash(0),
    "flash_sgdw": flash(0),
    "adafactor": rms(factored(0, 1)), "adalomo": factored(0, 1), "came_pytorch": came,
    "galore_adamw": low_rank(copies(2), two_low_rank), "galore_adamw_layerwise": low_rank(copies(2), two_low_rank),
    "galore_adafactor": galore_adafactor,
    "apollo_adamw": apollo, "apollo_adamw_layerwise": apollo,
    "muon": matrices(copies(1), copies(2), NOTHING), "dion": matrices(dion, copies(2), copies(2)),
    "sinkgd": matrices(NOTHING, torchao(8, 1024), copies(2)),
}  # fmt: skip
BY_REAL_RUN = {"galore_adamw_8bit", "galore_adamw_8bit_layerwise", "q_galore_adamw8bit"}
"""Compared with the packages in `test_real_packages.py`."""
REFUSED = {"galore_adafactor_layerwise": "relative_step", "polora": "git repository", "scao": "could not be read"}
SHARED = {
    "adamw_apex_fused": 4,
    "adamw_bnb_8bit": 2048,
    "adamw_8bit": 2048,
    "paged_adamw_8bit": 2048,
    "ademamix_8bit": 2048,
    "paged_ademamix_8bit": 2048,
    "lion_8bit": 1024,
    "paged_lion_8bit": 1024,
    "rmsprop_bnb_8bit": 1024,
}
"""Bytes that all tensors share: an overflow flag; bitsandbytes' lookup tables, one signed and one unsigned, if a state
has 8 bits."""


def keys_of(name: str) -> dict[str, Any]:
    low = name.startswith(("galore", "apollo"))
    return {"optim_target_modules": [".*_proj"], "optim_args": {"rank": RANK}} if low else {}


def expected(name: str, shapes: Mapping[str, tuple[int, ...]], size: int) -> int:
    return sum(FORMULAS[name](parameter, shape, size) for parameter, shape in shapes.items())


def step_twice(name: str, module: nn.Module) -> Any:
    return on_meta(module, optimizer=name, **keys_of(name))[0]


def test_every_name_has_a_formula_or_a_reason():
    assert set(FORMULAS) | BY_REAL_RUN | set(REFUSED) | {"muon_8bit"} == set(OPTIMIZER_NAMES)
    assert set(known_optimizers()) == set(OPTIMIZER_NAMES) - {"polora", "scao"}


@pytest.mark.parametrize("name", FORMULAS)
def test_full_fine_tune_in_bf16(name):
    optimizer = step_twice(name, make_llama(torch.bfloat16, "meta"))
    assert optimizer.state_bytes() + optimizer.state_bytes("managed") == expected(name, SHAPES, 2) + SHARED.get(name, 0)


@pytest.mark.parametrize("name", [name for name in FORMULAS if not name.startswith("flash")])
def test_full_fine_tune_in_fp32(name):
    optimizer = step_twice(name, make_llama(torch.float32, "meta"))
    assert optimizer.state_bytes() + optimizer.state_bytes("managed") == expected(name, SHAPES, 4) + SHARED.get(name, 0)


def make_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    module = get_peft_model(
        make_llama(torch.bfloat16, "meta"), LoraConfig(r=RANK, target_modules=["q_proj", "down_proj"])
    )
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return module


# Optimizers that read frozen weights too, or plain linear layers, are tested below.
@pytest.mark.parametrize(
    "name", [name for name in FORMULAS if not name.startswith(("flash", "galore", "apollo", "adalomo"))]
)
def test_lora_in_fp32(name):
    optimizer = step_twice(name, make_lora())
    flag = 4 if name == "adamw_apex_fused" else 0  # no tensor has 4096 elements, so there are no lookup tables
    assert optimizer.state_bytes() == expected(name, LORA_SHAPES, 4) + flag
    assert optimizer.state_bytes("managed") == 0


def test_adalomo_keeps_factors_of_frozen_weights_too():
    optimizer = step_twice("adalomo", make_lora())
    assert optimizer.state_bytes() == expected("adalomo", {**SHAPES, **LORA_SHAPES}, 4)


@pytest.mark.parametrize("name", ["flash_adamw", "flash_adam", "flash_lion", "flash_sgd", "flash_sgdw"])
def test_flash_refuses_fp32_unless_reported_not_to_correct(name):
    with pytest.raises(ConfigError, match="master_weight_bits"):
        on_meta(make_lora(), optimizer=name)
    optimizer, _ = on_meta(make_lora(), optimizer=name, optim_args={"master_weight_bits": None})
    whole = sum(math.prod(shape) for shape in LORA_SHAPES.values())
    assert optimizer.state_bytes() == expected(name, LORA_SHAPES, 4) - whole  # without the byte that corrects bf16


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_cannot_train_gives_the_reason(name):
    with pytest.raises(ConfigError, match=REFUSED[name]):
        build_optimizer(recipe_of(optimizer=name, **keys_of(name), **LORA), make_lora())


@pytest.mark.parametrize(("name", "states"), [("adamw", 2), ("lion", 1), ("ademamix", 3)])
@pytest.mark.parametrize("bits", [8, 32])
def test_only_states_of_1e5_elements_are_paged(name, states, bits):
    # Embedding and head have 131,072 each; the embedding's states are fp32 in the 8-bit optimizer too. The head's
    # absmax is not paged: torch.zeros makes it (bitsandbytes/optim/optimizer.py, get_state_buffer and init_state).
    optimizer = step_twice(f"paged_{name}_{bits}bit", make_llama(torch.bfloat16, "meta"))
    assert optimizer.state_bytes("managed") == states * 131072 * (4 + bits // 8)


def test_counters_that_stay_on_the_host():
    # torch makes 0-d fp32 counters on the CPU, except for a fused or capturable step (torch/optim/adam.py,
    # _init_group).
    bf16 = step_twice("adamw_torch", make_llama(torch.bfloat16, "meta"))
    assert bf16.host_bytes == 4 * len(SHAPES)
    assert step_twice("adamw_torch_fused", make_llama(torch.bfloat16, "meta")).host_bytes == 0


def test_schema_names():
    path = paths.SHARED / "axolotl-0.19.0-schema.json"
    if not path.exists():
        pytest.skip("axolotl's schema is not here")
    keys = json.loads(path.read_text(encoding="utf-8"))["AxolotlInputConfig"]
    assert keys["optimizer"]["default"] == recipe_of().optimizer.name


@pytest.mark.parametrize(
    ("name", "args", "copies_of_bf16"),
    [
        ("optimi_adamw", {"kahan_sum": None}, 3),  # None is the library's default: enabled for half precision
        ("optimi_adamw", {"kahan_sum": False}, 2),
        ("optimi_adamw", "kahan_sum=False", 3),  # a text, and any text is true
        ("stable_adamw", {"kahan_sum": False}, 3),  # axolotl converts it to text for transformers
        ("stable_adamw", {"kahan_sum": None}, 3),
    ],
)
def test_kahan_summation_is_read_as_the_libraries_read_it(name, args, copies_of_bf16):
    module = make_llama(torch.bfloat16, "meta")
    optimizer = on_meta(module, optimizer=name, optim_args=args)[0]
    elements = sum(parameter.numel() for parameter in module.parameters())
    assert optimizer.state_bytes() // (2 * elements) == copies_of_bf16
