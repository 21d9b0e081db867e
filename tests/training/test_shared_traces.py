"""One trace is shared by all cards that give the same answers to its questions."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.new_process import in_new_process
from support.tiny_models import write_tiny_model

from axmem_trace import estimate
from axmem_trace.kernels.core.matmul import CUBLAS
from axmem_trace.recipe.recipe import Gpu
from axmem_trace.recipe.watched_gpu import Question, answer, ask, ask_block, watch
from axmem_trace.training import layer_folding
from axmem_trace.training.shared_traces import traces_shared

AMPERE, ADA, HOPPER = (Gpu(compute_capability=each, memory_bytes=100) for each in ((8, 0), (8, 9), (9, 0)))


def is_hopper(capability: tuple[int, int], added: int) -> bool:
    return capability[0] + added >= 9


@pytest.mark.parametrize(
    ("question", "same_on_ada", "same_on_hopper"),
    [
        (lambda gpu: gpu.compute_capability >= (8, 0), True, True),
        (lambda gpu: (7, 5) < gpu.compute_capability <= (9, 0), True, True),
        (lambda gpu: gpu.compute_capability < (9, 0), True, False),
        (lambda gpu: gpu.compute_capability[0], True, False),
        (lambda gpu: gpu.compute_capability[:1], True, False),
        (lambda gpu: gpu.compute_capability in ((8, 6), (8, 9)), False, True),
        (lambda gpu: gpu.compute_capability not in ((7, 5),), True, True),
        (lambda gpu: {(8, 0): 1}.get(gpu.compute_capability), False, False),
        (lambda gpu: (0, *gpu.compute_capability), False, False),
        (lambda gpu: f"{gpu.compute_capability}", False, False),
        (lambda gpu: max(gpu.compute_capability, (8, 5)), False, False),
        (lambda gpu: ask(gpu.compute_capability, is_hopper, 0), True, False),
        (lambda gpu: ask(gpu.compute_capability, is_hopper, 1), True, True),
        (lambda gpu: gpu.memory_bytes, True, True),
        (lambda gpu: gpu.at_most(40, 50), True, True),
    ],
)
def test_which_cards_give_the_same_answer_to_each_question(question, same_on_ada, same_on_hopper) -> None:
    asked: set[Question] = set()
    assert question(watch(AMPERE, asked)) == question(AMPERE)
    assert asked
    for card, same in ((ADA, same_on_ada), (HOPPER, same_on_hopper)):
        assert all(answer(card, each) == answer(AMPERE, each) for each in asked) is same


def test_a_block_that_depends_on_the_card_does_not_prevent_sharing() -> None:
    """The trace is shared, and the block gets the size for the other card."""
    asked: set[Question] = set()
    assert ask_block(watch(AMPERE, asked).compute_capability, CUBLAS) == 4096 * 1024 * 2 + 16 * 1024 * 8
    assert [answer(HOPPER, question) for question in asked] == [32 * 1024 * 1024]
    assert ask_block(HOPPER.compute_capability, CUBLAS) == 32 * 1024 * 1024


def test_memory_matters_only_if_it_changes_a_decision() -> None:
    """With 40 bytes in use, 60 of 100 bytes are free; of 200 bytes, 160."""
    larger, asked = Gpu(memory_bytes=200), set[Question]()
    assert watch(AMPERE, asked).at_most(50, 40) == 50
    assert all(answer(AMPERE, each) == answer(larger, each) for each in asked)
    assert watch(AMPERE, asked).at_most(80, 40) == 60
    assert not all(answer(AMPERE, each) == answer(larger, each) for each in asked)


CARDS = ("T4", "A100-40GB", "RTX 4090", "H100-80GB", "B200", "RTX 5090")


def compare(config: Path, num_gpus: int) -> tuple[bool, int]:
    """Whether shared traces give each card's own figures, and the number of traces."""

    def figures(card: str) -> tuple[object, ...]:
        report = estimate(config, gpu=card, num_gpus=num_gpus, hub="never", alternatives=False, moments=False)
        return (
            report.peak,
            report.buckets,
            report.gpu,
            report.ranks,
            report.headroom_bytes,
            report.holders,
            report.verdict,
        )

    alone = [figures(card) for card in CARDS]
    traced, trace_run = [], layer_folding.trace_run
    layer_folding.trace_run = lambda *args, **rest: traced.append(1) or trace_run(*args, **rest)
    with traces_shared():
        equal = [figures(card) for card in CARDS] == alone
    in_all = len(traced)
    figures(CARDS[1])
    return equal and len(traced) == in_all + 1, in_all


@pytest.mark.parametrize("num_layers", [2, 15])
@pytest.mark.parametrize("num_gpus", [1, 2])
def test_shared_traces_give_the_figures_of_separate_estimates(tmp_path: Path, num_gpus: int, num_layers: int) -> None:
    """Of 15 layers only some are traced. Their check ran for one card and does not depend on the card."""
    config = tmp_path / "run.yml"
    home = write_tiny_model("llama", tmp_path / "llama", num_hidden_layers=num_layers)
    config.write_text(
        yaml.safe_dump(
            {
                "base_model": home,
                "sequence_len": 24,
                "micro_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "learning_rate": 1e-4,
                "bf16": "auto",
                "optimizer": "adamw_torch_fused",
                "datasets": [{"path": "x", "type": "alpaca"}],
                "attn_implementation": "flash_attention_2",
            }
        )
    )
    equal, num_traces = in_new_process(compare, config, num_gpus)
    assert equal
    # T4 has no FlashAttention-2 and trains in float16. The other cards differ only in cuBLAS's workspace, which is
    # larger from Hopper on and is resized.
    assert num_traces == 2
