"""The use of a layer's number is found in source code."""

from __future__ import annotations

import ast
import textwrap

import pytest
import torch
from torch import nn

from axmem_trace.folding.repetition import CannotFold
from axmem_trace.models.layer_numbers import _look_for_numbers, _look_for_positions
from axmem_trace.models.repeated_layers import find_repetition, keep_layers, renumber

MAY = [
    "k, v = past_key_values.update(k, v, self.layer_idx, kwargs=kwargs)",
    "k = cache.layers[self.layer_idx].keys",
    "n = past_key_value.get_seq_length(layer_idx=self.layer_idx)",
    "self.layer_idx = 3",
]
MAY_NOT = [
    "if self.layer_idx == 5: pass",
    "x = x * self.layer_idx",
    "x = self.scales[self.layer_idx]",
    "x = helper(self.layer_idx)",
    "n = self.layer_idx",
]
LOOPS_MAY = [
    "for layer in self.layers: x = layer(x)",
    "for layer in self.layers[: self.config.num_hidden_layers]: x = layer(x)",
    "for i, layer in enumerate(self.layers): x = layer(x)",
    "for i, layer in enumerate(self.layers): x = layer(x, masks[self.config.layer_types[i]])",
    "for i, layer in enumerate(self.layers): x = layer(x, past_key_values[i])",
]
LOOPS_MAY_NOT = [
    "for i, layer in enumerate(self.layers): x = layer(x) if i < 3 else x",
    "for i, layer in enumerate(self.layers): x = layer(x, extra[:, i])",
    "for i, layer in enumerate(self.layers): x = layer(x, self.kinds[i])",
    "x = self.layers[3](x)",
    "for i in range(len(self.layers)): x = self.layers[i](x)",
    "pairs = enumerate(self.layers)",
]


def method_with(line: str) -> ast.FunctionDef:
    tree = ast.parse("def forward(self, x):\n" + textwrap.indent(line, "    "))
    assert isinstance(tree.body[0], ast.FunctionDef)
    return tree.body[0]


@pytest.mark.parametrize("line", MAY)
def test_a_layer_number_may_be_used_for_the_cache(line: str):
    _look_for_numbers(object, method_with(line), frozenset({"layer_idx"}))


@pytest.mark.parametrize("line", MAY_NOT)
def test_any_other_use_of_a_layer_number_is_refused(line: str):
    with pytest.raises(CannotFold, match="uses the number of a layer"):
        _look_for_numbers(object, method_with(line), frozenset({"layer_idx"}))


@pytest.mark.parametrize("line", LOOPS_MAY)
def test_a_loop_over_the_layers_is_accepted(line: str):
    _look_for_positions(object, method_with(line), "layers")


@pytest.mark.parametrize("line", LOOPS_MAY_NOT)
def test_a_loop_that_uses_positions_is_refused(line: str):
    with pytest.raises(CannotFold, match="uses the number of a layer"):
        _look_for_positions(object, method_with(line), "layers")


def llama(**changes: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=20,
        num_attention_heads=2,
        num_key_value_heads=1,
        **changes,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_equal_layers_are_found_and_removed():
    model = llama()
    repeated = find_repetition(model)
    found = repeated.repetition
    assert (found.path, found.length, found.first, found.period, found.periods) == ("model.layers", 20, 1, 1, 3)
    assert found.kept == [0, 1, 2, 3, 19]
    keep_layers(model, found)
    renumber(model, found, repeated.numbers)
    layers = model.get_submodule("model.layers")
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2, 3, 4]
    assert model.config.num_hidden_layers == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.mlp.up_proj, "marked", True),
        lambda layer: layer.mlp.up_proj.weight.requires_grad_(False),
        lambda layer: setattr(layer.mlp, "up_proj", nn.Linear(8, 9, device="meta")),
        lambda layer: layer.mlp.register_forward_hook(lambda *args: None),
        lambda layer: layer.mlp.register_buffer("scale", torch.ones(1, device="meta")),
        lambda layer: layer.mlp.to(torch.float16),
        lambda layer: setattr(layer.mlp, "act_fn", nn.ReLU()),
    ],
)
def test_a_layer_that_differs_ends_the_range(change):
    model = llama()
    change(model.model.layers[18])
    assert find_repetition(model).repetition.kept == [0, 1, 2, 3, 17, 18, 19]
    change(model.model.layers[9])
    with pytest.raises(CannotFold, match="save no work"):
        find_repetition(model)


def test_a_layer_with_a_wrong_number_is_not_folded():
    model = llama()
    model.model.layers[5].self_attn.layer_idx = 99
    with pytest.raises(CannotFold, match="no range of equal layers"):
        find_repetition(model)


def number_mlps(model, number_of):
    """Sets a separate `layer_idx` in each layer's MLP, as LongCat-Flash sets 2 n and 2 n + 1 in its two attentions."""
    for number, layer in enumerate(model.model.layers):
        layer.mlp.layer_idx = number_of(number)


def test_a_number_computed_from_the_layers_number_is_accepted():
    model = llama()
    number_mlps(model, lambda number: 2 * number + 1)
    repeated = find_repetition(model)
    keep_layers(model, repeated.repetition)
    renumber(model, repeated.repetition, repeated.numbers)
    layers = model.get_submodule("model.layers")
    numbers = [(layer.self_attn.layer_idx, layer.mlp.layer_idx) for layer in layers]
    assert numbers == [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9)]


@pytest.mark.parametrize("number_of", [lambda number: number**2, lambda number: 7, lambda number: number // 2])
def test_any_other_number_with_that_name_is_refused(number_of):
    model = llama()
    number_mlps(model, number_of)
    with pytest.raises(CannotFold, match="no range of equal layers"):
        find_repetition(model)


def test_a_size_that_grows_with_the_layers_is_not_a_layer_number():
    model = llama()
    for number, layer in enumerate(model.model.layers):
        layer.mlp.width = 64 * (number + 1)
    with pytest.raises(CannotFold, match="no range of equal layers"):
        find_repetition(model)


def test_layers_that_share_weights_are_refused():
    model = llama()
    model.model.layers[5].mlp.up_proj.weight = model.model.layers[6].mlp.up_proj.weight
    with pytest.raises(CannotFold, match="share"):
        find_repetition(model)


class Own(nn.Module):
    """Not one of transformers' classes: its source was not read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2, device="meta") for _ in range(20))


def test_a_users_own_code_is_refused():
    with pytest.raises(CannotFold, match="not one of transformers"):
        find_repetition(Own())
