"""Which tensors hold the memory at the peak, under names that a user knows."""

from __future__ import annotations

import pytest
from support.hand_made_run import make_hand_made_report

from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.model_facts import ModelFacts, ModuleFact, TensorFact
from axmem_trace.report.holders import LAYER_INPUTS, LOGITS, HolderNames

CLASSES = {
    "": "PeftModel", "base_model": "LoraModel", "base_model.model": "LlamaForCausalLM",
    "base_model.model.model": "LlamaModel", "base_model.model.model.embed_tokens": "Embedding",
    "base_model.model.model.rotary_emb": "LlamaRotaryEmbedding", "base_model.model.model.layers": "ModuleList",
    "base_model.model.model.layers.0": "LlamaDecoderLayer", "base_model.model.visual.blocks.0": "Block",
    "base_model.model.lm_head": "Linear",
}  # fmt: skip


def fact(module, nbytes):
    return TensorFact(
        name=f"{module}.weight",
        module=module,
        kind="parameter",
        role="weight",
        dtype="bfloat16",
        trainable=False,
        elements=nbytes // 2,
        logical_elements=nbytes // 2,
        nbytes=nbytes,
    )


FACTS = ModelFacts(
    name="x",
    model_type="llama",
    class_name="LlamaForCausalLM",
    config_source="",
    tensors=(fact("base_model.model.model.layers.0", 4096), fact("base_model.model.visual.blocks.0", 1024)),
    modules=tuple(ModuleFact(name=name, class_name=class_name) for name, class_name in CLASSES.items()),
)


@pytest.mark.parametrize(
    ("allocation", "name"),
    [
        ({"role": "weight", "module": "model.layers.0.mlp", "phase": "load"}, "layer weights"),
        ({"role": "weight", "module": "visual.blocks.0.attn", "phase": "load"}, "weights of visual.blocks"),
        ({"role": "weight", "module": "model.embed_tokens", "phase": "load"}, "embedding weights"),
        ({"role": "weight", "module": "lm_head", "phase": "load"}, "output layer's weights"),
        ({"role": "weight", "module": "model.rotary_emb", "phase": "load"}, "other weights"),
        ({"role": "adapter", "module": "model.layers.0.mlp.lora_A"}, "adapter weights"),
        ({"role": "gradient", "module": "model.layers.0", "phase": "backward"}, "gradients"),
        ({"role": "optimizer", "module": "model.layers.0", "phase": "optimizer"}, "optimizer states"),
        ({"kept": True, "module": "lm_head", "op": "aten.mm.default"}, LOGITS),
        ({"kept": True, "module": "", "op": "aten._log_softmax.default"}, LOGITS),
        ({"module": "", "op": "aten.nll_loss_backward.default", "phase": "backward"}, LOGITS),
        ({"kept": True, "module": "model.layers.0", "op": "aten.add.Tensor"}, LAYER_INPUTS),
        ({"kept": True, "module": "model.layers.0.mlp", "op": "aten.mm.default"}, "activations inside the layers"),
        ({"kept": True, "module": "model", "op": "aten.mul.Tensor"}, "other activations"),
        (
            {"module": "model.layers.0.mlp", "phase": "backward", "recomputed": True},
            "one layer's activations, recomputed",
        ),
        ({"module": "model.layers.0.mlp", "phase": "backward"}, "temporaries of backward"),
        ({"module": "model.layers.0.mlp", "phase": "eval"}, "temporaries of evaluation"),
        ({"module": "model.layers.0", "phase": "optimizer", "op": "aten.sqrt.default"}, "optimizer's temporaries"),
        ({"role": "workspace", "module": "", "op": "cuBLAS"}, "cuBLAS workspace"),
        ({"module": "model.layers.0.mlp", "op": "dequantize_4bit"}, "dequantised weights"),
        ({"module": "model.embed_tokens", "phase": "load", "op": "aten.empty.default"}, "copies made while loading"),
        ({"module": "model.layers.0", "op": "fsdp.all_gather_copy_in.default"}, "gathered parameters"),
    ],
)
def test_names(allocation, name):
    inner = allocation["module"]
    module = "base_model.model" + (f".{inner}" if inner else "")
    made = Allocation(nbytes=1, allocated_tick=1, **{"op": "aten.mm.default", **allocation, "module": module})
    assert HolderNames(FACTS).of(made) == name


def test_live_memory_at_the_peak_is_summed_in_blocks_the_largest_first():
    ledger = Ledger(
        allocations=(
            Allocation(
                nbytes=1000, allocated_tick=1, phase="load", role="weight", module="base_model.model.model.layers.0"
            ),
            Allocation(nbytes=100, allocated_tick=2, kept=True, module="base_model.model.lm_head"),
            Allocation(nbytes=3000, allocated_tick=3, freed_tick=5, module="base_model.model"),
            Allocation(nbytes=9000, allocated_tick=6, module="base_model.model"),  # not yet allocated
            Allocation(nbytes=9000, allocated_tick=3, freed_tick=4, module="base_model.model"),  # gone
            Allocation(nbytes=9000, allocated_tick=1, device="cpu", module="base_model.model"),
        ),
        marks=(),
        ticks=9,
    )
    # 100 and 3000 bytes are 512 + 3072 in blocks; 1000 are 1024
    found = [(holder.name, holder.bytes) for holder in HolderNames(FACTS).list_alive(ledger, 4)]
    assert found == [(LOGITS, 3584), ("layer weights", 1024)]


def test_they_add_up_to_the_peak():
    report = make_hand_made_report()
    assert sum(holder.bytes for holder in report.holders) == report.peak.allocated_bytes
    assert report.peak.holder == LOGITS
    assert report.holders[0].bytes == max(holder.bytes for holder in report.holders)
