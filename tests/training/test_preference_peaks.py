"""The memory of preference losses at their peaks, counted by hand: every tensor of the logits' size, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.ledger import Ledger
from axmem_trace.training.loading import load_models
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import make_recording, record_run

MICRO, TOKENS, COMPLETION, VOCABULARY = 2, 64, 32, 16384
ROW = TOKENS * VOCABULARY
"""Number of elements of a row's logits."""
SHIFTED = (TOKENS - 1) * VOCABULARY
"""The same, without the last position."""
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]}


def record(tmp_path: Path, *assumed: str, axolotl: str = "", **keys: Any) -> Ledger:
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama", vocab_size=VOCABULARY),
        "micro_batch_size": MICRO,
        "sequence_len": TOKENS,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "chatml.intel"}],
        "bf16": True,
        "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": True,
        **LORA,
        **keys,
    }
    recipe = read_recipe(config, hub="never", assumptions=assumed, axolotl=axolotl)
    recording = make_recording(recipe)
    built = load_models(recipe, recording)
    return record_run(recipe, built, build_optimizer(recipe, built.module), recording=recording).ledger


def large(ledger: Ledger, tick: int) -> list[int]:
    """Bytes of the live tensors of the logits' size, the largest first: those larger than a quarter of a row's logits
    in bf16.

    Nothing else is so large here: embedding and head are registered as weights."""
    found = [each.nbytes for each in ledger.alive_at(tick) if each.role == "" and each.nbytes > ROW // 2]
    return sorted(found, reverse=True)


def peaks(ledger: Ledger) -> tuple[list[int], list[int], list[int]]:
    """`large` at three moments: the peak of the first forward, the begin of backward, and the peak of backward."""
    start = next(mark.tick for mark in ledger.marks if mark.phase == "backward")
    forward, backward = (ledger.peak(phase=phase, step=1).tick for phase in ("forward", "backward"))
    return large(ledger, forward), large(ledger, start), large(ledger, backward)


PAIRS = 2 * MICRO * ROW
"""Number of elements of the logits of a micro-batch of pairs."""
SHIFTED_PAIRS = 2 * MICRO * SHIFTED


def test_dpo(tmp_path: Path) -> None:
    # forward: the policy's fp32 logits; the reference's in bf16 and their fp32 copy. 4 + 4 + 2 bytes for each element.
    # backward begins with the policy's logits. It allocates their gradient: dense, without the last position.
    forward, start, backward = peaks(record(tmp_path, rl="dpo"))
    assert forward == [4 * PAIRS, 4 * PAIRS, 2 * PAIRS]
    assert start == [4 * PAIRS]
    assert backward == [4 * PAIRS, 4 * SHIFTED_PAIRS]


def test_dpo_with_precomputed_references(tmp_path: Path) -> None:
    # the policy's logits are cast to fp32: 4 + 2.
    forward, start, backward = peaks(record(tmp_path, rl="dpo", precompute_ref_log_probs=True))
    assert forward == [4 * PAIRS, 2 * PAIRS]
    assert (start, backward) == ([4 * PAIRS], [4 * PAIRS, 4 * SHIFTED_PAIRS])


def test_dpo_without_triton(tmp_path: Path) -> None:
    # TRL's PyTorch code copies the logits for the entropy: policy 4, reference 4 and 2 are as high as policy 4, copy 4
    # and, of 128 tokens at once, a log-softmax. Here 2 x 63 x 2 = 252 tokens make two parts of 128 and 124.
    ledger = record(tmp_path, "loss_helpers=torch", rl="dpo")
    start = next(mark.tick for mark in ledger.marks if mark.phase == "backward")
    assert large(ledger, start) == [4 * PAIRS]
    # backward: the logits, each row's gradient of its sum of exponentials, and all of them stacked. The picked ones are
    # scattered in place into zeros later, when no row's is left (torch `gather_backward`).
    backward = large(ledger, ledger.peak(phase="backward", step=1).tick)
    assert backward == [4 * PAIRS, 4 * SHIFTED_PAIRS] + [4 * SHIFTED] * 2 * MICRO


def test_dpo_with_the_kernels_of_axolotl_0_19(tmp_path: Path) -> None:
    # The last position of every row is removed from each model's logits, and the result is copied flat: policy 4, its
    # copy 4 (kept), reference 4 and its copy 4. Backward begins with the copy and makes its gradient; then the gradient
    # of all positions.
    forward, start, backward = peaks(record(tmp_path, "loss_helpers=axolotl", rl="dpo"))
    assert forward == [4 * PAIRS, 4 * PAIRS, 4 * SHIFTED_PAIRS, 4 * SHIFTED_PAIRS]
    assert start == [4 * SHIFTED_PAIRS]
    assert backward == [4 * PAIRS, 4 * SHIFTED_PAIRS]


def test_orpo_with_the_kernels_of_axolotl_0_19(tmp_path: Path) -> None:
    # logits 4, the chosen half's log-softmax 2, the flat copy 4.
    forward, start, _ = peaks(record(tmp_path, "loss_helpers=axolotl", rl="orpo"))
    assert forward == [4 * PAIRS, 4 * SHIFTED_PAIRS, 4 * MICRO * SHIFTED]
    assert start == [4 * SHIFTED_PAIRS, 4 * MICRO * SHIFTED]


def test_orpo(tmp_path: Path) -> None:
    # forward: logits 4; of the chosen half a dense copy and its log-softmax, 2 + 2.
    # backward: the gradient of all rows; the gradient of the chosen rows, first in their own size, then written into
    # zeros for all rows. Both are added in place.
    chosen = MICRO * SHIFTED
    forward, start, backward = peaks(record(tmp_path, rl="orpo"))
    assert forward == [4 * PAIRS, 4 * chosen, 4 * chosen]
    assert start == [4 * PAIRS, 4 * chosen]
    assert backward == [4 * PAIRS, 4 * PAIRS, 4 * MICRO * ROW]


def test_simpo_without_the_likelihood(tmp_path: Path) -> None:
    forward, start, backward = peaks(record(tmp_path, rl="simpo", simpo_gamma=0.5, cpo_alpha=0.0))
    assert forward == [4 * PAIRS, 2 * PAIRS]
    assert start == [4 * PAIRS]
    assert backward == [4 * PAIRS, 4 * SHIFTED_PAIRS]


def test_kto(tmp_path: Path) -> None:
    # rows are samples here. Both models' logits 4 + 4; the desired and the undesired rows, copied separately, 2 + 2;
    # for one of the two kinds, the completion's positions: 32 of 63 positions of half of the rows.
    rows = MICRO * ROW
    forward, start, backward = peaks(record(tmp_path, rl="kto", remove_unused_columns=False))
    picked = MICRO // 2 * SHIFTED
    assert forward == [4 * rows, 4 * rows, 4 * picked, 4 * picked, 4 * MICRO // 2 * COMPLETION * VOCABULARY]
    assert (start, backward) == ([4 * rows], [4 * rows, 4 * MICRO * SHIFTED])


def test_a_full_run_of_kto_has_a_reference_in_fp32(tmp_path: Path) -> None:
    ledger = record(tmp_path, rl="kto", remove_unused_columns=False, adapter=None)
    weights = sum(each.nbytes for each in ledger.alive_at(ledger.ticks) if each.role == "weight")
    reference = sum(each.nbytes for each in ledger.alive_at(ledger.ticks) if each.role == "reference")
    # the policy is bf16 and the reference fp32: 4 to 2, without buffers (fp32 in both).
    assert reference == pytest.approx(2 * weights, rel=0.001)
    # axolotl's bf16 copy is still alive while TRL loads its own.
    loading = max(
        sum(each.nbytes for each in ledger.alive_at(each.allocated_tick) if each.role in ("weight", "reference"))
        for each in ledger.allocations
        if each.step == 0 and each.role == "reference"
    )
    assert loading == pytest.approx(weights + weights + 2 * weights, rel=0.001)


def test_the_tiles_of_the_liger_key_hold_no_logits(tmp_path: Path) -> None:
    # 2 x 2 x 32 = 128 completion tokens fit one tile; 16,384 words are two of 8192. In forward: the product in bf16, its
    # fp32 copy, two exponentials (the tile before keeps its own until this one's is there) and their product.
    forward, start, _ = peaks(record(tmp_path, rl="dpo", dpo_use_liger_kernel=True))
    tile = (2 * MICRO * COMPLETION - 1) * 8192
    assert forward == [4 * tile] * 4 + [2 * tile]
    assert start == []


GENERATED = {"rl": "grpo", "trl": {"beta": 0.1, "num_generations": 2, "max_completion_length": COMPLETION}}


def test_grpo(tmp_path: Path) -> None:
    # logits of the completion's 32 positions and one more. Training: 2 + 4 bytes while they are cast to fp32; then 4;
    # then also the gradient of 32 positions, 4.
    ledger = record(tmp_path, gradient_accumulation_steps=2, **GENERATED)
    one, kept = MICRO * (COMPLETION + 1) * VOCABULARY, MICRO * COMPLETION * VOCABULARY
    forward, start, backward = peaks(ledger)
    assert forward == [4 * one, 2 * one]
    assert (start, backward) == ([4 * one], [4 * one, 4 * kept])
    # The reference scores two chunks: a variable still holds the first chunk's fp32 logits while the second's are made.
    assert large(ledger, ledger.peak(phase="score", step=1).tick) == [4 * one, 4 * one, 2 * one]


def test_generation_holds_the_whole_cache(tmp_path: Path) -> None:
    # Prompts of 64 - 32 = 32 tokens. 2 x 2 rows are generated at once. The last pass leaves keys and values of 32 + 31
    # tokens in each of 2 layers: 2 x rows x 2 heads x 63 x 8 x 2 bytes. While a layer's tensors are extended, the old
    # ones are alive too.
    ledger = record(tmp_path, gradient_accumulation_steps=2, **GENERATED)
    rows, new = 2 * MICRO, 2 * 2 * MICRO * 2 * 63 * 8 * 2 // 2
    cached = [
        each
        for each in ledger.allocations
        if each.phase == "generate" and each.step == 1 and each.nbytes == new and each.op == "aten.cat.default"
    ]
    assert len(cached) == 4
    last = max(each.allocated_tick for each in cached)
    assert all(each.alive(last) for each in cached)
    # Sampling: the head's bf16 logits of one position, an fp32 copy, its softmax, and the exponential random numbers of
    # `multinomial`.
    draws = [each for each in ledger.allocations if each.op == "aten.multinomial.default" and each.phase == "generate"]
    drawn = max(each.allocated_tick for each in draws if each.step == 1 and each.nbytes == rows * VOCABULARY * 4)
    sizes = [each.nbytes for each in ledger.alive_at(drawn)]
    assert sizes.count(rows * VOCABULARY * 4) == 3
    assert sizes.count(rows * VOCABULARY * 2) == 1


def test_the_second_step_generates_too(tmp_path: Path) -> None:
    ledger = record(tmp_path, gradient_accumulation_steps=2, **GENERATED)
    assert {(mark.phase, mark.step) for mark in ledger.marks} >= {("generate", 1), ("generate", 2), ("score", 2)}


def test_a_copy_of_the_adapter_is_frozen_and_stays(tmp_path: Path) -> None:
    with_reference = record(tmp_path, gradient_accumulation_steps=2, **GENERATED)
    plain = {**GENERATED, "trl": {**GENERATED["trl"], "beta": 0.0}}  # type: ignore[dict-item]
    without = record(tmp_path, gradient_accumulation_steps=2, **plain)
    adapters = [
        sum(each.nbytes for each in ledger.alive_at(ledger.ticks) if each.role == "adapter")
        for ledger in (with_reference, without)
    ]
    states = [
        sum(each.nbytes for each in ledger.alive_at(ledger.ticks) if each.role == "optimizer")
        for ledger in (with_reference, without)
    ]
    assert adapters[0] == 2 * adapters[1]
    assert states[0] == states[1]


def test_grpo_with_the_kernels_of_axolotl_0_19(tmp_path: Path) -> None:
    # The logits are divided by the temperature in place, and copied flat. Forward: logits 4 and the copy 4; backward begins
    # with the copy, since the division keeps nothing, and has at its highest the gradient of the copy, and the division's:
    # zeros for all positions, and its own result before it is put into them.
    ledger = record(tmp_path, "loss_helpers=axolotl", gradient_accumulation_steps=2, **GENERATED)
    one, kept = MICRO * (COMPLETION + 1) * VOCABULARY, MICRO * COMPLETION * VOCABULARY
    forward, start, backward = peaks(ledger)
    assert forward == [4 * one, 4 * kept]
    assert start == [4 * kept]
    assert sum(backward) >= 4 * one + 2 * 4 * kept


def test_dpo_of_axolotl_0_19_empties_the_cache_after_each_micro_batch(tmp_path: Path) -> None:
    # Two optimizer steps of two micro-batches each. Each micro-batch empties the cache once, after its loss has been
    # returned.
    older = record(tmp_path, axolotl="0.19.0", rl="dpo", gradient_accumulation_steps=2)
    newer = record(tmp_path, rl="dpo", gradient_accumulation_steps=2)
    started = [mark.tick for mark in older.marks if mark.phase == "forward"]
    assert len(older.empty_cache_ticks) == len(started) == 4
    assert all(start < tick for start, tick in zip(started, older.empty_cache_ticks, strict=True))
    assert newer.empty_cache_ticks == ()


def test_the_fp32_reference_of_kto_keeps_a_cache_in_axolotl_0_19(tmp_path: Path) -> None:
    # TRL 1.9 does not pass `use_cache=False` when it scores the other samples' completions, and the reference that it
    # loads itself has the setting of its config.json. So keys and values of both layers, 2 rows x 2 heads x 64 tokens x
    # 8, are alive until the result is used. Rotation by an fp32 model's angles makes keys fp32, and the cache has one
    # dtype for both: 4 bytes. In transformers 5.24 values keep their own dtype: 2 bytes. axolotl disables the cache of
    # its own model.
    keys: dict[str, Any] = {"rl": "kto", "remove_unused_columns": False, "adapter": None}
    cached = (2 * 2 * TOKENS * 8 * 4, 2 * 2 * TOKENS * 8 * 2)
    alive = []
    for axolotl in ("0.19.0", "0.21.0"):
        ledger = record(tmp_path, axolotl=axolotl, **keys)
        heads = [
            each.allocated_tick
            for each in ledger.allocations
            if each.nbytes == 2 * MICRO * ROW and each.step == 1 and each.phase == "forward"
        ]
        # the outputs of the head, in this order: policy on other completions, policy, reference on other completions,
        # reference
        alive.append(
            [sum(each.nbytes in cached and "cat" in each.op for each in ledger.alive_at(tick)) for tick in heads[:4]]
        )
    assert [older - newer for older, newer in zip(*alive, strict=True)] == [0, 0, 2 * 2, 0]


def reward_model(tmp_path: Path) -> str:
    """A classifier's checkpoint in bf16."""
    path = Path(write_tiny_model("llama", tmp_path / "reward", vocab_size=160))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "pad_token_id": 0}))
    return str(path)


def test_a_reward_model_stays_and_scores_all_rows_at_once(tmp_path: Path) -> None:
    # The tiny llama: hidden 32, MLP 48, 4 heads of 8, 2 of them for keys and values. Two layers of
    # 2 x 32 x 32 + 2 x 16 x 32 + 3 x 48 x 32 + 2 x 32 = 7744 weights, an embedding of 160 x 32, a norm, a head of 32 x 1,
    # in 2 bytes; two rotary tables of 4 fp32 numbers.
    named = {**GENERATED, "trl": {**GENERATED["trl"], "reward_funcs": [reward_model(tmp_path)]}}  # type: ignore[dict-item]
    ledger = record(tmp_path, gradient_accumulation_steps=2, **named)
    own = [each for each in ledger.allocations if each.module.startswith("reward_model") and each.role == "reference"]
    assert sum(each.nbytes for each in own) == 2 * (2 * 7744 + 160 * 32 + 32 + 32) + 2 * 4 * 4
    assert {each.phase for each in own} == {"load"}
    assert all(each.alive(ledger.ticks) for each in own)
    # It scores 2 x 2 rows of 64 tokens together. Its config.json does not disable the cache, so keys and values (2
    # layers, 4 rows x 2 heads x 64 tokens x 8, bf16) are kept until the forward has returned.
    scored = [
        each
        for each in ledger.allocations
        if each.module.startswith("reward_model") and each.phase == "score" and each.step == 1
    ]
    assert any(each.nbytes == 4 * 64 * 48 * 2 for each in scored)  # the MLP inside, bf16
    assert max(each.nbytes for each in scored) <= 4 * 64 * 48 * 4
    cached = [each for each in scored if "cat" in each.op and each.nbytes == 4 * 2 * 64 * 8 * 2]
    assert len(cached) >= 2 * 2


ASYNCHRONOUS = {"async_prefetch": True, "use_vllm": True, "beta": 0.1, "num_generations": 2}


def test_asynchronous_grpo_has_half_precision_logits(tmp_path: Path) -> None:
    # bf16 logits and their copy without NaN, 2 + 2. Both are kept, the first by `nan_to_num`, the second by the kernel.
    # Backward: the kernel's gradient (32 positions); during the backward of the in-place division, zeros for all
    # positions and its own result. All are bf16.
    trl = {**ASYNCHRONOUS, "max_completion_length": COMPLETION}
    ledger = record(tmp_path, gradient_accumulation_steps=2, rl="grpo", trl=trl)
    one, kept = MICRO * (COMPLETION + 1) * VOCABULARY, MICRO * COMPLETION * VOCABULARY
    forward, start, backward = peaks(ledger)
    assert forward == [2 * one, 2 * one]
    assert start == [2 * one, 2 * one]
    assert sum(backward) >= 2 * one + 2 * one + 2 * kept
    assert all(nbytes <= 2 * one for nbytes in backward)
    # The old policy scores up to four micro-batches at once: here all 2 x 2 rows. The reference scores two chunks of
    # two. While the second chunk's logits are copied, a variable still holds the first chunk's copy.
    assert large(ledger, ledger.peak(phase="score", step=1).tick) == [2 * 2 * one, 2 * 2 * one]
    # The cache is emptied before each optimizer step's training.
    assert len(ledger.empty_cache_ticks) == 2


def test_ebft_with_an_adapter_makes_logits_that_are_not_read(tmp_path: Path) -> None:
    # The policy without its adapters runs on all 2 x 2 rows of 64 tokens. It makes hidden states of 2 layers and the
    # embedding, 3 x 4 x 64 x 32 x 2 bytes. Three of them are concatenated, and concatenated again. Logits of all
    # positions are bf16.
    trl = {"num_generations": 2, "max_completion_length": COMPLETION, "use_vllm": True}
    ledger = record(tmp_path, gradient_accumulation_steps=2, rl="ebft", ebft={"mode": "structured"}, trl=trl)
    rows = 2 * MICRO
    scored = [each for each in ledger.allocations if each.phase == "score" and each.step == 1]
    logits = [each for each in scored if each.nbytes == rows * ROW * 2]
    assert len(logits) == 1
    joined = [each for each in scored if each.op == "aten.cat.default" and each.nbytes == rows * TOKENS * 3 * 32 * 2]
    assert len(joined) == 2
    # the logits are alive until the features have been concatenated twice
    assert all(logits[0].alive(each.allocated_tick) for each in joined)
    # the reference answers, one for two rows
    assert sum(each.nbytes == rows // 2 * ROW * 2 for each in scored) == 1


def test_ebft_without_an_adapter_copies_the_policy(tmp_path: Path) -> None:
    # `feature_network` is another copy in the policy's dtype, frozen. Only its body is called, so there are no logits.
    trl = {"num_generations": 2, "max_completion_length": COMPLETION, "use_vllm": True}
    ledger = record(
        tmp_path, gradient_accumulation_steps=2, rl="ebft", ebft={"use_whitening": True}, trl=trl, adapter=None
    )
    alive = ledger.alive_at(ledger.ticks)
    weights, network = (sum(each.nbytes for each in alive if each.role == role) for role in ("weight", "reference"))
    assert network == weights
    scored = [each for each in ledger.allocations if each.phase == "score" and each.step == 1]
    assert not [each for each in scored if each.nbytes >= 2 * MICRO * ROW * 2 and each.role != "workspace"]
    # Whitening: a matrix of (3 x 32) x (3 x 32) in fp32 for each of the two prompts.
    assert sum(each.op == "aten.mm.default" and each.nbytes == (3 * 32) ** 2 * 4 for each in scored) == 2
