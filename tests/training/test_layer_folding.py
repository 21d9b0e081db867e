"""A report for which repeated layers were traced once equals the report for which another process traced every layer.

Each case says whether its layers are folded. If something could make layers different, they must not be folded, and the
figures must still be correct. The second half of the cases tests that.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.folded_runs import LORA, NUM_LAYERS, QLORA, make_config, report_of, unfolded_reports

from axmem_trace.training import layer_folding

MOE = {"family": "qwen3_moe"}
PAIRS = {"num_hidden_layers": 14}
"""The fewest that are folded where a period has two layers, with models of 8 and 6."""
MANY = {"num_hidden_layers": 24}
"""Enough for DDP's buckets."""
WITHOUT_CHANGE = {"num_hidden_layers": 15}
"""A few more than the fewest that are folded in a run: models of 5 and 4 layers are traced (`models/repeated_layers.py`
`WORTH_FOLDING`: together at most three quarters)."""
IN_TURNS = {"family": "gemma2", "attn_implementation": "eager", "model": PAIRS}
WIDE = {**MANY, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2}
FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}, "dp_shard_size": 4}
FOLDS: dict[str, dict[str, Any]] = {
    "full": {"model": WITHOUT_CHANGE},
    "full, not checkpointed, foreach": {"gradient_checkpointing": False, "optimizer": "adamw_torch"},
    "full, not reentrant, adafactor": {"gradient_checkpointing_kwargs": {"use_reentrant": False},
                                       "optimizer": "adafactor"},
    "full, float16 with a scaler": {"bf16": False, "fp16": True},
    "lora": {**LORA},
    "lora by names, dropout": {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "down_proj"],
                               "lora_dropout": 0.1},
    "lora by a pattern of all layers": {**LORA, "lora_target_linear": False, "lora_target_modules":
                                        r"model\.layers\.[\d]+\.(mlp|self_attn)\.(up|down|q)_proj"},
    "lora, ranks by kinds of modules": {**LORA, "lora_rank_pattern": {"q_proj": 8}, "lora_alpha_pattern": {"q_proj": 2}},
    "qlora, paged": {**QLORA, "optimizer": "paged_adamw_32bit"},
    "8-bit weights and optimizer": {**LORA, "load_in_8bit": True, "optimizer": "adamw_bnb_8bit"},
    "evaluation": {"val_set_size": 0.1, "eval_sample_packing": False},
    "sliding and full attention in turns": {**IN_TURNS, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "experts, two dense layers first": {**MOE, "model": {"mlp_only_layers": [0, 1], "num_hidden_layers": 12}},
    "experts in every other layer": {**MOE, "model": {**PAIRS, "decoder_sparse_step": 2}},
    "attention and state space in every layer": {"family": "falcon_h1"},
    "convolution and attention in turns": {
        "family": "lfm2", "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "model": {**PAIRS, "layer_types": ["conv", "full_attention"] * 7},
    },
    "tied embeddings": {"family": "qwen2"},
    "dpo, adapters switched off": {**LORA, "rl": "dpo", "dpo_loss_type": ["sigmoid", "sft"]},
    "dpo, reentrant": {**LORA, "rl": "dpo", "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "ipo, ddp": {**LORA, "rl": "ipo", "ddp": True, "model": MANY},
    "simpo": {**LORA, "rl": "simpo"},
    "orpo": {"rl": "orpo"},
    "kto": {**LORA, "rl": "kto", "remove_unused_columns": False},
    "a reward model": {**LORA, "reward_model": True},
    "fsdp2": {**FSDP2},
    "fsdp2, lora, not checkpointed, loaded in parts": {
        **FSDP2, **LORA, "gradient_checkpointing": False, "fsdp_config": {"cpu_ram_efficient_loading": True},
    },
    "fsdp2, kept between passes, copies of the shards": {
        **FSDP2, "fsdp_config": {"reshard_after_forward": False}, "dp_replicate_size": 2, "optimizer": "adamw_torch",
    },
    "fsdp2, qlora": {**FSDP2, **QLORA},
    "ddp": {"ddp": True, "model": MANY},
    "ddp, many buckets that end within layers": {"ddp": True, "ddp_bucket_cap_mb": 1, "model": WIDE},
    "ddp, qlora, three micro-batches": {**QLORA, "ddp": True, "gradient_accumulation_steps": 4, "model": MANY},
    "ddp, foreach, not checkpointed, one micro-batch, evaluation": {
        "ddp": True,
        "model": MANY,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "optimizer": "adamw_torch",
        "val_set_size": 0.1,
        "eval_sample_packing": False,
    },
    "ddp, an embedding that is broadcast without a copy": {
        **LORA, "ddp": True, "model": {**MANY, "vocab_size": 4_200_000},
    },
    "ddp, experts in every other layer": {
        **MOE, "ddp": True, "model": {**MANY, "decoder_sparse_step": 2, "hidden_size": 128},
    },
    "ddp, lora and whole embeddings, buffers not sent": {
        **LORA,
        **IN_TURNS,
        "model": MANY,
        "ddp": True,
        "ddp_broadcast_buffers": False,
        "ddp_bucket_cap_mb": 1,
        "lora_r": 64,
        "lora_modules_to_save": ["embed_tokens", "lm_head"],
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
}  # fmt: skip
TELLS_APART: dict[str, dict[str, Any]] = {
    "peft_layers_to_transform": {**LORA, "peft_layers_to_transform": [0, 1, 2, 3]},
    "targets of single layers": {**LORA, "lora_target_linear": False,
                                 "lora_target_modules": ["v_proj", "layers.5.self_attn.q_proj"]},
    "a pattern of single layers": {**LORA, "lora_target_linear": False,
                                   "lora_target_modules": r"model\.layers\.([0-9]|1[0-1])\.self_attn\.[qv]_proj"},
    "a pattern of layers far behind": {**LORA, "lora_target_linear": False,
                                       "lora_target_modules": r".*\.(1\d|0)\.mlp\.up_proj"},
    "ranks of single layers": {**LORA, "lora_rank_pattern": {"layers.5.self_attn.q_proj": 16}},
    "peft_layer_replication": {**LORA, "peft_layer_replication": [[0, 8], [1, 8]]},
    "spectrum": {"plugins": ["axolotl.integrations.spectrum.SpectrumPlugin"], "spectrum_top_fraction": 0.5,
                 "spectrum_model_name": "llama"},
    "blocks that several layers share": {"family": "zamba2", "model": {
        **MANY, "layers_block_type": ["mamba", "mamba", "hybrid"] * 8}},
    "the model's own code": {"family": "own code", "trust_remote_code": True, "gradient_checkpointing": False},
    "unfrozen_parameters": {"unfrozen_parameters": [r"^model\.layers\.1[0-9].*", "lm_head"]},
    "lisa": {"lisa_n_layers": 4, "lisa_step_interval": 20, "lisa_layers_attribute": "model.layers"},
    "a list of what is not quantised": {**QLORA, "bnb_config_kwargs":
                                        {"llm_int8_skip_modules": ["model.layers.3.mlp.up_proj", "lm_head"]}},
    "dpo, a second model": {"rl": "dpo"},
    "layer_offloading": {**LORA, "layer_offloading": True},
    "checkpoints on the host": {"gradient_checkpointing": "offload"},
    "sliding attention in the last half": {"family": "qwen2", "model": {
        "layer_types": ["full_attention"] * 7 + ["sliding_attention"] * 8, "sliding_window": 8,
        "use_sliding_window": True}},
    "one layer of experts in the middle": {**MOE, "model": {"mlp_only_layers": [n for n in range(15) if n != 7]}},
    # The last layer's recomputation frees one tensor more than the others. So folding is refused, and all layers are
    # traced.
    "sliding and full attention in turns, not reentrant": {
        **IN_TURNS, "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "ddp, which looks for unused parameters": {**LORA, "ddp": True, "ddp_find_unused_parameters": True},
    "eight layers": {"model": {"num_hidden_layers": 8}},
}  # fmt: skip
TELLS_APART = {
    name: {**case, "model": {**WITHOUT_CHANGE, **case.get("model", {})}} for name, case in TELLS_APART.items()
}
CASES = {**FOLDS, **TELLS_APART}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The configurations of the cases that this session tests."""
    directory = tmp_path_factory.mktemp("models")
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    return {name: make_config(directory, name, case) for name, case in CASES.items() if name in asked}


@pytest.fixture(scope="module")
def unfolded(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return unfolded_reports(configs)


@pytest.fixture
def threshold(name: str, request: pytest.FixtureRequest) -> None:
    """Only models with fewer layers than a run folds need another threshold."""
    if CASES[name].get("model", {}) != WITHOUT_CHANGE:
        request.getfixturevalue("short_models_fold")


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("name", CASES)
def test_a_folded_report_equals_the_report_of_every_layer(
    name: str, configs: Any, unfolded: Any, monkeypatch: pytest.MonkeyPatch
):
    runs: list[layer_folding.TracedRun] = []
    original = layer_folding.trace_run

    def keep(*args: Any, **kwargs: Any) -> layer_folding.TracedRun:
        runs.append(original(*args, **kwargs))
        return runs[-1]

    monkeypatch.setattr(layer_folding, "trace_run", keep)
    found, expected = report_of(configs[name], fold=True), unfolded[name]
    for part in expected:
        assert found[part] == expected[part], part
    assert len(found) == len(expected)

    assert runs
    for run in runs:  # several where ranks differ
        assert (not run.not_folded) is (name in FOLDS), run.not_folded
        assert "in a short model" not in run.not_folded, run.not_folded  # an error where a refusal was due
        layers = {fact.name.split("layers.")[1].split(".")[0] for fact in run.facts.modules if "layers." in fact.name}
        assert len(layers) == CASES[name].get("model", {}).get("num_hidden_layers", NUM_LAYERS)
