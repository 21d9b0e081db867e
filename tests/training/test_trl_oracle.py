"""Our step makes the same allocations as TRL's, on the CPU and on meta, for every method.

The tests need `trl` in the release that the objectives copy (in the `test` extra). Without it they are skipped.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from support.cpu_oracle import describe, record_step
from support.tiny_models import write_tiny_model

from axmem_trace.kernels.losses import tiled_log_probabilities
from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.models import reference
from axmem_trace.recipe.run import Attention

trl = pytest.importorskip("trl", minversion="1.14")

from support.trl_losses import TrlObjective, triton_wrapper  # noqa: E402 (after the skip)

MICRO = 4
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"rl": "dpo", "dpo_loss_type": ["sigmoid", "sft", "ipo"]},
    "dpo weighted": {"rl": "dpo", "dpo_use_weighting": True, "dpo_ld_alpha": 0.5},
    "dpo precomputed": {"rl": "dpo", "precompute_ref_log_probs": True},
    "ipo": {"rl": "ipo"},
    "kto": {"rl": "kto", "remove_unused_columns": False},
    "orpo": {"rl": "orpo"},
    "simpo": {"rl": "simpo", "simpo_gamma": 0.5},
    "simpo without likelihood": {"rl": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    "grpo": {"rl": "grpo", "trl": {"beta": 0.1, "num_generations": 4, "max_completion_length": 10}},
    "grpo off policy": {
        "rl": "grpo",
        "trl": {
            "beta": 0.0,
            "num_generations": 4,
            "max_completion_length": 10,
            "num_iterations": 2,
            "loss_type": "grpo",
        },
    },
    "gdpo": {"rl": "gdpo", "trl": {"num_generations": 4, "max_completion_length": 10, "temperature": 0.7}},
    "reward": {"reward_model": True, "center_rewards_coefficient": 0.01},
}
OTHERS = """
    exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop hinge sigmoid_norm
    """.split()


def make_config(tmp_path: Path, family: str = "llama", **keys: Any) -> dict[str, Any]:
    return {
        "base_model": write_tiny_model(family, tmp_path / family),
        "sequence_len": 24,
        "micro_batch_size": MICRO,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "bf16": True,
        "attn_implementation": "eager",
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "datasets": [{"path": "x", "type": "chatml.intel"}],
        **keys,
    }


def tensors(ledger: Ledger) -> Counter[Any]:
    """All tensors except single numbers and GRPO's selection of rows for a mean. The trainer makes and drops some
    numbers for its log."""
    return describe(ledger, leave_out=lambda each: each.nbytes <= 8 or _is_choice_of_rows(each))


def _is_choice_of_rows(each: Allocation) -> bool:
    return each.op == "aten.index.Tensor" and each.nbytes == MICRO * 4


@pytest.fixture(autouse=True)
def eager_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that TRL loads uses SDPA, whose kernel on a CPU is different. So it gets eager attention here."""
    monkeypatch.setattr(reference, "Attention", partial(Attention, kernel="eager"))


def compare(config: dict[str, Any], helpers: str) -> tuple[Ledger, Ledger]:
    """TRL's record and ours, both from the CPU. It first checks that ours on meta is the same."""
    assumed = ["output_dtype=float32", f"loss_helpers={helpers}"]
    ours, on_meta = (record_step(config, device, assumptions=assumed) for device in ("cpu", "meta"))
    assert tensors(ours) == tensors(on_meta)
    theirs = record_step(
        config,
        "cpu",
        assumptions=assumed,
        change_objective=TrlObjective,
        within=triton_wrapper if helpers == "trl" else nullcontext,
    )
    return theirs, ours


@pytest.mark.parametrize("helpers", ["trl", "torch"])
@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_the_step_makes_the_allocations_of_trl(
    method: str, adapter: dict[str, Any], helpers: str, tmp_path: Path
) -> None:
    theirs, ours = compare(make_config(tmp_path, **METHODS[method], **adapter), helpers)
    assert tensors(theirs) == tensors(ours)
    assert_peaks_agree(theirs, ours)


def assert_peaks_agree(theirs: Ledger, ours: Ledger) -> None:
    """Checks the peaks. They may differ by vectors of one number for each row or token that one side keeps for one line
    longer."""
    for phase in ("forward", "backward"):
        found, expected = (each.peak(phase=phase, step=1).allocated_bytes for each in (ours, theirs))
        assert abs(found - expected) <= 4096, (phase, found, expected)


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_losses_of_pairs(name: str, tmp_path: Path) -> None:
    config = make_config(tmp_path, rl="dpo", dpo_loss_type=[name], dpo_label_smoothing=0.1, **LORA)
    theirs, ours = compare(config, "trl")
    few = [len(tensors(each) - tensors(other)) for each, other in ((theirs, ours), (ours, theirs))]
    rows = 8 * 4  # bytes of one number for each row: only the count of such vectors may differ
    assert all(
        key[0] <= rows for each, other in ((theirs, ours), (ours, theirs)) for key in tensors(each) - tensors(other)
    )
    assert max(few) <= 6


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["dpo", "ipo", "dpo precomputed", "kto", "grpo"])
def test_the_tiles_of_the_liger_keys(method: str, adapter: dict[str, Any], tmp_path: Path) -> None:
    """Tiles are so small that a tiny model fills more than one."""
    import trl.trainer.dpo_trainer as dpo_trainer
    import trl.trainer.grpo_trainer as grpo_trainer
    import trl.trainer.kto_trainer as kto_trainer
    import trl.trainer.utils as helpers

    keys = METHODS[method]
    liger = {"trl": {**keys["trl"], "use_liger_loss": True}} if "trl" in keys else {"dpo_use_liger_kernel": True}
    config = make_config(tmp_path, **{**keys, **liger}, **adapter)
    with (
        patch.object(tiled_log_probabilities, "TOKENS_OF_TILE", 7),
        patch.object(tiled_log_probabilities, "VOCABULARY_OF_TILE", 40),
        patch.object(helpers, "_CHUNKED_LOGPROB_TOKEN_CHUNK_SIZE", 7),
        patch.object(dpo_trainer, "_CHUNKED_LOGPROB_CHUNK_SIZE", 40),
        patch.object(kto_trainer, "_CHUNKED_LOGPROB_CHUNK_SIZE", 40),
        patch.object(grpo_trainer, "_CHUNKED_LOGPROB_CHUNK_SIZE", 40),
        patch(
            "axmem_trace.config.derive.objective.CHUNKED", dict.fromkeys(("dpo", "ipo", "kto"), "dpo_use_liger_kernel")
        ),
    ):
        theirs, ours = compare(config, "trl")
    assert tensors(theirs) == tensors(ours)
    assert_peaks_agree(theirs, ours)


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "simpo", "grpo", "reward"])
def test_an_evaluation_makes_the_allocations_of_trl(method: str, tmp_path: Path) -> None:
    """Before the first step, two batches run in evaluation mode without gradients."""
    evaluated = {"val_set_size": 0.1, "eval_steps": 5, "eval_batch_size": MICRO, "eval_on_start": True}
    theirs, ours = compare(make_config(tmp_path, **METHODS[method], **LORA, **evaluated), "trl")
    assert any(each.phase == "eval" for each in ours.allocations)
    assert tensors(theirs) == tensors(ours)


@pytest.mark.parametrize(
    ("method", "asked"),
    [("kto", False), ("grpo", False), ("orpo", False), ("orpo", True), ("simpo", False), ("simpo", True)],
)
def test_the_routers_loss_of_other_methods(method: str, asked: bool, tmp_path: Path) -> None:
    """KTO and GRPO always have it, and so does DPO (next test). ORPO and SimPO have it only if the model's
    configuration sets it."""
    overrides = {"overrides_of_model_config": {"output_router_logits": asked}}
    theirs, ours = compare(make_config(tmp_path, "qwen3_moe", **METHODS[method], **LORA, **overrides), "trl")
    assert tensors(theirs) == tensors(ours)


def test_the_routers_loss_is_part_of_the_loss(tmp_path: Path) -> None:
    """A mixture of experts has router logits and their balancing loss, even if the configuration does not set them."""
    theirs, ours = compare(make_config(tmp_path, "qwen3_moe", rl="dpo", **LORA), "trl")
    assert tensors(theirs) == tensors(ours)
    silent = make_config(
        tmp_path, "qwen3_moe", rl="dpo", overrides_of_model_config={"router_aux_loss_coef": 0.0}, **LORA
    )
    without = record_step(silent, "cpu", assumptions=["output_dtype=float32", "loss_helpers=trl"])
    assert sum((tensors(ours) - tensors(without)).values()) > sum((tensors(without) - tensors(ours)).values())


def test_a_reward_model_allocates_the_same_on_the_cpu_and_on_meta(tmp_path: Path) -> None:
    named = {"beta": 0.0, "num_generations": 4, "max_completion_length": 10}
    plain = make_config(tmp_path, rl="grpo", trl=named, **LORA)
    reward = write_tiny_model("qwen2", tmp_path / "reward")
    _, without = compare(plain, "trl")
    _, rewarded = compare({**plain, "trl": {**named, "reward_funcs": [reward]}}, "trl")
    assert sum((tensors(rewarded) - tensors(without)).values()) > 20
    assert not tensors(without) - tensors(rewarded)


OWN: dict[str, dict[str, Any]] = {
    "asynchronous": {
        "rl": "grpo",
        "trl": {"async_prefetch": True, "use_vllm": True, "beta": 0.1, "num_generations": 4, "max_completion_length": 10},
    },
    "ebft": {"rl": "ebft", "ebft": {"embed_method": "completion_mean", "use_whitening": True},
             "trl": {"num_generations": 4, "max_completion_length": 10}},
    "ebft, asynchronous": {
        "rl": "ebft", "ebft": {"embed_method": "concat"},
        "trl": {"async_prefetch": True, "use_vllm": True, "num_generations": 4, "max_completion_length": 10},
    },
}  # fmt: skip


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", OWN)
def test_the_trainers_of_axolotl_allocate_the_same_on_the_cpu_and_on_meta(
    method: str, adapter: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(tmp_path, **OWN[method], **adapter)
    assumed = ["output_dtype=float32", "loss_helpers=trl"]
    on_cpu, on_meta = (record_step(config, device, assumptions=assumed) for device in ("cpu", "meta"))
    assert tensors(on_cpu) == tensors(on_meta)
    assert_peaks_agree(on_cpu, on_meta)
