"""The training objective from axolotl's keys: rows, references, lengths, and errors of TRL."""

from __future__ import annotations

from typing import Any

import pytest

from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.objective import Reference
from axmem_trace.recipe.recipe import Recipe

LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 8, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}


def read(*assumed: str, axolotl: str = "", **keys: Any) -> Recipe:
    config = {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "sequence_len": 1024,
        "micro_batch_size": 2,
        "learning_rate": 1e-5,
        "gradient_accumulation_steps": 4,
        "datasets": [{"path": "x"}],
        "bf16": True,
        **keys,
    }
    return read_recipe(config, hub="never", assumptions=assumed, axolotl=axolotl)


KTO = {"rl": "kto", "remove_unused_columns": False}
SECOND = Reference(kind="model", resident_model=True)
LOADED_BY_TRL = Reference(kind="model", dtype="float32", resident_model=True, unused_copy=True)


@pytest.mark.parametrize(
    ("keys", "rows", "reference"),
    [
        ({"rl": "dpo"}, 4, SECOND),
        ({"rl": "dpo", **LORA}, 4, Reference(kind="adapters_off")),
        ({"rl": "ipo", **LORA}, 4, Reference(kind="adapters_off")),
        ({"rl": "dpo", "precompute_ref_log_probs": True}, 4, Reference(kind="precomputed", resident_model=True)),
        ({"rl": "dpo", "precompute_ref_log_probs": True, **LORA}, 4, Reference(kind="precomputed")),
        ({"rl": "orpo"}, 4, Reference()),
        ({"rl": "simpo", "simpo_gamma": 0.5}, 4, Reference(unused_copy=True)),
        (KTO, 2, LOADED_BY_TRL),
        ({**KTO, **LORA}, 2, Reference(kind="adapters_off")),
        ({"rl": "grpo"}, 2, Reference(unused_copy=True)),
        ({"rl": "grpo", "trl": {"beta": 0.1}}, 2, LOADED_BY_TRL),
        ({"rl": "gdpo", "rl_beta": 0.1, **LORA}, 2, Reference(kind="adapter_copy")),
        ({"rl": "grpo", **LORA}, 2, Reference()),
        ({"reward_model": True}, 4, Reference()),
        ({}, 2, Reference()),
    ],
)
def test_rows_and_references(keys: dict[str, Any], rows: int, reference: Reference) -> None:
    recipe = read(**keys)
    assert recipe.batch.rows == rows
    assert recipe.objective.reference == reference


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"rl": "dpo"}, "bfloat16"),
        (KTO, "bfloat16"),
        ({"rl": "grpo"}, "bfloat16"),
        ({"rl": "orpo"}, "autocast"),
        ({}, "autocast"),
    ],
)
def test_trl_casts_adapters_of_a_quantised_base(keys: dict[str, Any], dtype: str) -> None:
    recipe = read(**keys, **QLORA, lora_dropout=0.1)
    assert recipe.adapter.dtype == dtype
    assert recipe.adapter.dropout == (0.1 if keys in ({"rl": "grpo"}, {}) else 0.0)
    assert read(**keys, **LORA).adapter.dtype == "autocast"


def test_lengths_are_assumptions() -> None:
    assert (read(rl="dpo").objective.prompt_tokens, read(rl="dpo").objective.completion_tokens) == (512, 512)
    said = read("prompt_tokens=100", "completion_tokens=300", rl="dpo")
    assert (said.batch.row_tokens, said.objective.completion_tokens) == (400, 300)
    assert read("completion_tokens=300", rl="dpo").batch.row_tokens == 1024
    generated = read("prompt_tokens=200", rl="grpo", trl={"max_completion_length": 256})
    assert (generated.batch.row_tokens, generated.objective.completion_tokens) == (456, 256)
    with pytest.raises(ConfigError, match="only preference and GRPO training"):
        read("completion_tokens=300")
    with pytest.raises(ConfigError, match="a row has 1024 tokens"):
        read("completion_tokens=1024", rl="orpo")


def test_a_generation_is_used_for_all_accumulated_micro_batches() -> None:
    rollouts = read(rl="grpo").objective.rollouts
    assert rollouts is not None
    assert (rollouts.steps_per_generation, rollouts.scores_old_policy) == (4, False)
    twice = read(rl="grpo", trl={"generation_batch_size": 16}).objective.rollouts
    assert twice is not None
    assert (twice.steps_per_generation, twice.scores_old_policy) == (8, True)  # 4 steps are not a multiple of 8
    again = read(rl="grpo", trl={"num_iterations": 2}).objective.rollouts
    assert again is not None
    assert again.scores_old_policy


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({**KTO, "micro_batch_size": 1}, "KTO compares with the completion of another row"),
        ({"rl": "simpo"}, "unset simpo_gamma"),
        ({"rl": "simpo", "simpo_gamma": 0.5, "warmup_ratio": 0.1}, "warmup_ratio is not supported"),
        ({"rl": "dpo", "dpo_use_weighting": True, "dpo_use_liger_kernel": True}, "weighted DPO needs logits"),
        ({"rl": "dpo", "dpo_loss_type": ["exo_pair"]}, "exo_pair needs label smoothing"),
        ({"rl": "grpo", "trl": {"num_generations": 3}}, "not a multiple of the 3 completions"),
        ({"rl": "dpo", "lora_model_dir": "/nowhere", **LORA}, "is not loaded: a new one is trained"),
        ({"rl": "dpo", "max_prompt_len": 100}, "`max_prompt_len` has no effect"),
        ({"rl": "dpo", "lora_dropout": 0.1, **LORA}, "`lora_dropout` has no effect"),
        ({"rl": "grpo"}, "completions end after 20 tokens"),
        (
            {"rl": "grpo", "trl": {"reward_funcs": ["org/reward-model"]}},
            "the configuration of the reward model org/reward-model was not found",
        ),
        (KTO, "4 bytes per weight"),
        ({"rl": "kto", "dpo_use_liger_kernel": True}, "`dpo_use_liger_kernel` has no effect"),
        ({"rl": "ipo", "dpo_loss_type": ["hinge"]}, "`dpo_loss_type` has no effect"),
        ({"rl": "dpo", "trl": {"sync_ref_model": True}}, "`trl.sync_ref_model` has no effect"),
        ({"rl": "grpo"}, "8 rows are generated and scored together (2 x 4 micro-batches)"),
        ({"rl": "grpo"}, "8 completions of each prompt, TRL's default"),
        ({"rl": "grpo"}, "nothing rewards the completions"),
        ({"rl": "gdpo", "trl": {"sync_ref_model": True}}, "no reference to synchronise"),
        ({"rl": "grpo", "trl": {"sync_ref_model": True, "beta": 0.1}, **LORA}, "no separate reference model"),
        ({"rl": "gdpo", "trl": {"num_generations": 1}}, "needs another completion of the same prompt"),
        ({"rl": "gdpo", "eval_batch_size": 3, "val_set_size": 0.1, "eval_steps": 5}, "an evaluation batch has 3 rows"),
        (
            {"rl": "dpo", "dpo_use_liger_kernel": True, **LORA, "lora_target_modules": ["lm_head"]},
            "the adapter on lm_head would not be trained",
        ),
    ],
)
def test_unexpected_behaviour_is_reported(keys: dict[str, Any], said: str) -> None:
    assert any(said in note.text for note in read(**keys).notes)


@pytest.mark.parametrize(("axolotl", "helpers"), [("0.19.0", "axolotl"), ("0.20.0", "axolotl"), ("0.21.0", "trl")])
def test_log_probabilities_use_the_kernels_of_the_release(axolotl, helpers):
    config = {"base_model": "Qwen/Qwen2.5-0.5B", "rl": "dpo", "learning_rate": 1e-5, "datasets": [{"path": "x"}]}
    assert read_recipe(config, axolotl=axolotl, hub="never").objective.helpers == helpers
    chosen = read_recipe(config, axolotl=axolotl, assumptions=["loss_helpers=torch"], hub="never")
    assert chosen.objective.helpers == "torch"


COLOCATED = {"rl": "grpo", "trl": {"use_vllm": True, "vllm_mode": "colocate"}}


@pytest.mark.parametrize(
    ("axolotl", "share", "empties"), [("0.19.0", 0.9, True), ("0.20.0", 0.9, True), ("0.21.0", 0.3, False)]
)
def test_defaults_of_the_releases(axolotl: str, share: float, empties: bool) -> None:
    """axolotl 0.20.0 `utils/schemas/vllm.py:26` and `core/trainers/dpo/trainer.py:101`, both gone in 0.21.0."""
    recipe = read(axolotl=axolotl, **COLOCATED)
    assert recipe.objective.rollouts is not None
    assert recipe.objective.rollouts.engine_share == share
    assert read(axolotl=axolotl, rl="dpo").objective.empties_cache is empties
    assert read(axolotl=axolotl, rl="ipo").objective.empties_cache is empties
    assert not read(axolotl=axolotl, **KTO).objective.empties_cache
    refusals = [note for note in recipe.notes if "from the vllm block, which is missing" in note.text]
    assert bool(refusals) is (share == 0.9)


@pytest.mark.parametrize(
    ("axolotl", "kind"), [("0.19.0", "adapters_off"), ("0.20.0", "adapter_copy"), ("0.21.0", "adapter_copy")]
)
def test_the_reference_of_an_adapter_on_experts(axolotl: str, kind: str) -> None:
    """TRL 1.9.0 `grpo_trainer.py:456` makes no copy with `target_parameters`; 1.13.0 does with peft 0.20 and later."""
    keys = {**LORA, "lora_target_parameters": ["mlp.experts.down_proj"]}
    assert read(axolotl=axolotl, rl="grpo", rl_beta=0.1, **keys).objective.reference.kind == kind
    assert read(axolotl=axolotl, rl="grpo", rl_beta=0.1, **LORA).objective.reference.kind == "adapter_copy"


@pytest.mark.parametrize(
    "keys", [{"rl": "dpo", "dpo_use_liger_kernel": True}, {"rl": "grpo", "trl": {"use_liger_loss": True}}]
)
def test_losses_of_liger_kernel_are_not_in_the_figures(keys: dict[str, Any]) -> None:
    assert read(**keys).objective.chunked
    assert not any(note.kind == "not_modelled" for note in read(**keys).notes)
    before = read(axolotl="0.20.0", **keys)
    assert not before.objective.chunked
    assert [(note.kind, note.direction) for note in before.notes if "a loss of liger-kernel" in note.text] == [
        ("not_modelled", "either")
    ]
    both = read(axolotl="0.19.0", rl="dpo", dpo_use_liger_kernel=True, precompute_ref_log_probs=True)
    assert any("precomputed references" in note.text for note in both.notes)


def test_fused_lora_kernels_make_older_preference_training_fail() -> None:
    """axolotl 0.19.0 `monkeypatch/lora_kernels.py:484` raises for a model without an adapter, which TRL adds later."""
    keys = {"rl": "dpo", "lora_mlp_kernel": True, **LORA}
    assert not any(note.kind == "refused" for note in read(**keys).notes)
    assert any(
        note.kind == "refused" and note.key == "lora_mlp_kernel" for note in read(axolotl="0.20.0", **keys).notes
    )


@pytest.mark.parametrize(
    ("axolotl", "helpers", "cooling"),
    [
        ("0.19.0", "axolotl", "in_place"),
        ("0.19.0", "torch", "in_place"),
        ("0.20.0", "axolotl", "copy"),
        ("0.21.0", "trl", "kernel"),
        ("0.21.0", "torch", "kernel"),
    ],
)
def test_how_logits_are_divided_by_the_temperature(axolotl: str, helpers: str, cooling: str) -> None:
    """TRL 1.9.0 `grpo_trainer.py:1519` `div_`; 1.13.0 `:1543` a new tensor; 1.14.1 in `selective_log_softmax`."""
    assert read(f"loss_helpers={helpers}", axolotl=axolotl, rl="grpo").objective.cooling == cooling


def test_a_reward_model_is_another_base_model() -> None:
    """In `trl.reward_funcs`, names with an owner are models; `module.function` is Python code on the host."""
    names = ["rewards.length", "Skywork/Skywork-Reward-V2-Qwen3-8B", "org/unknown"]
    recipe = read(rl="grpo", trl={"reward_funcs": names})
    assert recipe.objective.rollouts is not None
    assert [base.name for base in recipe.objective.rollouts.reward_models] == [names[1]]
    notes = [(note.kind, note.direction) for note in recipe.notes if note.key == "trl.reward_funcs"]
    assert notes == [("assumed", ""), ("not_modelled", "more")]
