"""The bytes that torch.compile's own partitioner keeps for backward are between two bounds: only the products, and all
tensors that eager keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.core_probe import record
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from axmem_trace.ledger import Allocation
from axmem_trace.report import bounds

ROWS, TOKENS = 2, 32


def make_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 1, "vocab_size": 256}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=4, **sizes)).to(torch.bfloat16)


def keep_compiled() -> int:
    """Bytes that a compiled forward gives to its backward, parameters left out, with inductor's decompositions."""
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    storages: dict[int, int] = {}

    def read_forward(graph: torch.fx.GraphModule, inputs: Any) -> torch.fx.GraphModule:
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        for node in output.args[0]:
            value = node.meta.get("val") if isinstance(node, torch.fx.Node) and node.op != "placeholder" else None
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        return graph

    backend = aot_autograd(
        fw_compiler=read_forward,
        bw_compiler=lambda graph, inputs: graph,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    torch._dynamo.reset()
    tokens = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    torch.compile(make_llama(), backend=backend)(input_ids=tokens, labels=tokens, use_cache=False)
    torch._dynamo.reset()
    return sum(storages.values())


def keep_eager() -> tuple[Allocation, ...]:
    with torch.device("meta"):
        model = make_llama()
        tokens = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    found = record(lambda: model(input_ids=tokens, labels=tokens, use_cache=False).loss)
    return tuple(each for each in found if each.kept)


@pytest.mark.slow
def test_the_partitioner_keeps_products_and_no_more_than_eager() -> None:
    kept = keep_eager()
    products = sum(each.nbytes for each in kept if bounds._is_product(each.op))
    # 64 tokens: gate and up (2 * 160 columns), v and attention's output (64 each) in bf16, a sum for each of 4 heads
    # in fp32; and attention's seed and offset, 24 bytes. Of the logits eager keeps the fp32 softmax, which is no product.
    assert products == 64 * ((2 * 160 + 2 * 64) * 2 + 4 * 4) + 24
    compiled = keep_compiled()
    assert products <= compiled <= sum(each.nbytes for each in kept)


def test_what_counts_as_a_product_is_never_computed_twice() -> None:
    from torch._functorch.partitioners import get_default_op_list

    never_twice = {str(op) for op in get_default_op_list().compute_intensive_ops}
    assert {name.rstrip(".") for name in bounds._PRODUCTS} <= never_twice


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_backward_makes_all_gradients_before_any_is_added(compiled: bool) -> None:
    """Four layers, in their second backward, which adds to earlier gradients. Eager adds each of them at once."""

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(op))
            return op(*args, **(kwargs or {}))

    names: list[str] = []
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8, bias=False) for _ in range(4)])
    torch._dynamo.reset()
    run = torch.compile(model, backend="aot_eager") if compiled else model
    rows = torch.randn(4, 8)
    run(rows).sum().backward()
    loss = run(rows).sum()
    with Operators():
        loss.backward()
    torch._dynamo.reset()
    # gradients of 4 weights and of 3 layers' inputs are products
    products = [position for position, name in enumerate(names) if name == "aten.mm.default"]
    sums = [position for position, name in enumerate(names) if name == "aten.add_.Tensor"]
    assert (len(products), len(sums)) == (7, 4)
    assert (sums[0] > products[-1]) is compiled
