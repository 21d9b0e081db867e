"""`fit` finds the gentlest permitted set, and each figure is an estimate of the changed run.

The estimate here is written by hand: weights, and bytes for each token of a batch. It needs more without a fused loss,
and more with a 32-bit optimizer. So every result can be calculated by hand.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from support.hand_made_run import make_hand_made_report

from axmem_trace import __main__ as command_line
from axmem_trace.advice.fitting.candidates import CANDIDATES
from axmem_trace.advice.fitting.fit import fit
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.render.fit import render_fit
from axmem_trace.report.run_types import Refusal
from axmem_trace.units import GIB

MIB = 1 << 20
WEIGHTS, OPTIMIZER_32, LOGITS_PER_TOKEN, PER_TOKEN = 4 * GIB, 2 * GIB, 1 * MIB, 1 * MIB
CONFIG = {
    "base_model": "meta-llama/Llama-3.1-8B",
    "adapter": "qlora",
    "load_in_4bit": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_linear": True,
    "datasets": [{"path": "a/b", "type": "alpaca"}],
    "sequence_len": 1024,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "optimizer": "adamw_torch",
    "gradient_checkpointing": True,
    "bf16": "auto",
    "val_set_size": 0,
    "attn_implementation": "flash_attention_2",
    "learning_rate": 1e-4,
}


def need(recipe) -> int:
    tokens = recipe.batch.rows * recipe.batch.row_tokens
    logits = tokens * LOGITS_PER_TOKEN if recipe.loss.path == "native" else 0
    return WEIGHTS + tokens * PER_TOKEN + logits + (0 if "8bit" in recipe.optimizer.name else OPTIMIZER_32)


def estimate(config, *, gpu, overrides=(), alternatives=True, moments=True, **options):
    recipe = read_recipe(config, gpu=gpu, overrides=overrides, **options)
    margin = recipe.gpu.margin_bytes
    too_old = recipe.gpu.compute_capability < (8, 0) and recipe.attention.kernel == "flash_attention_2"
    refusals = [Refusal(key=each.key, line=0, value="", reason=each.text) for each in recipe.refusals]
    refusals += [Refusal(key="attn_implementation", line=0, value="", reason="the card is too old")] * too_old
    report, needed, memory = make_hand_made_report(), need(recipe), recipe.gpu.memory_bytes
    peak = replace(report.peak, counted_bytes=needed, context_bytes=0, nccl_bytes=0, device_bytes=needed)
    return replace(
        report,
        peak=peak,
        gpu=replace(report.gpu, name=gpu, memory_bytes=memory, margin_bytes=margin, count=recipe.gpu.count),
        headroom_bytes=memory - needed,
        fits=needed + margin <= memory,
        why="",
        verdict="fits" if needed + margin <= memory else "does not fit",
        refusals=tuple(refusals),
    )


def ask(config=CONFIG, gpu="10GiB", **options):
    return fit(config, gpu=gpu, estimate=estimate, hub="never", **options)


def names(found) -> list[str]:
    return [single.candidate.name for single in found.chosen.singles]


def test_one_gentle_change_is_enough():
    # 4 + 2 + 4 x 1024 x 2 MiB (8 GiB) = 14 GiB; a fused loss needs no logits: 10 GiB
    found = ask()
    assert found.as_it_is.need_bytes == 14 * GIB
    assert names(found) == ["cut_cross_entropy"]
    assert found.chosen.answer.need_bytes == 10 * GIB


def test_at_least_ten_candidates_are_estimated():
    found = ask()
    estimated = {single.candidate.name for single in found.singles if single.answer.need_bytes}
    assert len(estimated) >= 10
    assert not estimated & set(found.skipped)
    assert all(single.blocked for single in found.singles if single.candidate.name in ("rank", "sequence_len"))
    everything = ask(everything=True)
    assert estimated < {single.candidate.name for single in everything.singles}
    assert everything.chosen.change == found.chosen.change


def test_two_changes_if_one_is_not_enough_and_both_are_needed():
    # 9 GiB: without logits 10, with a micro batch of 1 (and logits) 4 + 2 + 2 = 8: one change, but a slower run
    assert names(ask(gpu="9GiB")) == ["micro_batch"]
    # 7 GiB: a micro batch of 1 needs 8, without logits as well 7
    found = ask(gpu="7GiB")
    assert sorted(names(found)) == ["cut_cross_entropy", "micro_batch"]
    assert found.chosen.answer.need_bytes == 7 * GIB
    assert found.chosen.change.settings["gradient_accumulation_steps"] == 8
    # 6 GiB: with an 8-bit optimizer and the logits of one row 4 + 2
    assert sorted(names(ask(gpu="6GiB"))) == ["eight_bit_optimizer", "micro_batch"]
    # 5.5 GiB: without those as well 4 + 1
    assert sorted(names(ask(gpu="5.5GiB"))) == ["cut_cross_entropy", "eight_bit_optimizer", "micro_batch"]


def test_the_micro_batch_is_not_smaller_than_needed():
    found = ask({**CONFIG, "chunked_cross_entropy": True}, gpu="9GiB")
    # 4 + 2 + rows: 3 rows fit, but 4 x 2 is no multiple of 3
    assert found.chosen.change.settings == {"micro_batch_size": 2, "gradient_accumulation_steps": 4}


def test_changes_of_what_is_learned_need_permission():
    # 4.5 GiB: weights, 0.5 GiB of tokens with 512 of them at a time
    config = {**CONFIG, "num_epochs": 1}
    found = ask(config, gpu="4.6GiB", num_gpus=1)
    assert found.chosen is None
    assert found.fits is False
    blocked = {single.candidate.name: single.blocked for single in found.singles}
    assert "--allow sequence_len" in blocked["sequence_len"]
    permitted = ask(config, gpu="4.6GiB", num_gpus=1, allow=["sequence_len"])
    assert "sequence_len" in permitted.chosen.change.settings
    assert permitted.chosen.answer.runs


def test_settings_of_the_user_are_kept():
    found = ask({**CONFIG, "cut_cross_entropy": False, "plugins": ["axolotl.integrations.liger.LigerPlugin"]})
    assert names(found) == ["liger_fused_loss"]
    blocked = {single.candidate.name: single.blocked for single in found.singles}
    assert blocked["cut_cross_entropy"] == "you set `cut_cross_entropy: false`; --allow cut_cross_entropy permits it"
    kept = ask(keep=["plugins", "chunked_cross_entropy"])
    assert names(kept) == ["micro_batch"]
    assert ask({**CONFIG, "cut_cross_entropy": False}, allow=["cut_cross_entropy"]).chosen.change.settings[
        "cut_cross_entropy"
    ]


def test_a_combination_that_axolotl_refuses_is_not_used():
    found = ask({**CONFIG, "bf16": False, "fp16": False})
    blocked = {single.candidate.name: single.blocked for single in found.singles}
    assert "requires fp16 or bf16" in blocked["cut_cross_entropy"]


@pytest.mark.parametrize(("gpu", "micro", "length"), [("10GiB", 4, 1024), ("7GiB", 1, 1024), ("30GiB", 12, 3072)])
def test_the_next_larger_sizes_do_not_fit(gpu, micro, length):
    # 30 GiB: fits as it is; 24 GiB for 2 MiB x tokens: 12 rows of 1024, or 4 rows of 3072
    found = ask(gpu=gpu)
    sizes = {each.key: each for each in found.largest}
    assert sizes["micro_batch_size"].value == micro
    assert sizes["sequence_len"].value == length
    memory = found.report.gpu.memory_bytes
    assert all(each.need_bytes <= memory < each.next_need_bytes for each in found.largest)


def test_the_patch_is_the_change(tmp_path):
    path = tmp_path / "run.yml"
    path.write_text("# mine\n" + yaml.safe_dump(CONFIG).replace("micro_batch_size: 4", "micro_batch_size: 4  # many"))
    found = ask(path, gpu="7GiB")
    patch = yaml.safe_load(found.patch)
    assert {**CONFIG, **patch} == yaml.safe_load(found.changed_file)
    assert "micro_batch_size: 1  # many" in found.patch
    assert found.changed_file.startswith("# mine\n")
    changed = tmp_path / "changed.yml"
    changed.write_text(found.changed_file)
    assert estimate(changed, gpu="7GiB", hub="never").fits
    appended = tmp_path / "appended.yml"
    appended.write_text(path.read_text() + found.patch)
    assert estimate(appended, gpu="7GiB", hub="never").fits


def test_a_run_that_fits_needs_no_patch():
    found = ask(gpu="20GiB")
    assert (found.fits, found.patch, found.singles) == (True, "", ())


def test_a_margin_is_kept_free():
    assert ask(gpu="14GiB").fits
    assert ask(gpu="14GiB").chosen is None
    assert names(ask(gpu="14GiB", margin="1GiB")) == ["cut_cross_entropy"]
    assert ask(gpu="20GiB", margin="5%").margin_bytes == 1 << 30
    with pytest.raises(ConfigError, match=r"--margin|size"):
        ask(margin="much")


def test_a_card_is_needed():
    with pytest.raises(ConfigError, match="needs a card"):
        ask(gpu="")


def test_an_old_card_gets_another_attention_kernel_first():
    found = ask(gpu="T4")
    assert found.cure is not None
    assert found.cure.settings["attn_implementation"] == "sdpa"
    assert yaml.safe_load(found.patch)["attn_implementation"] == "sdpa"


def test_json_has_every_change_and_a_version():
    found = ask(gpu="7GiB")
    content = json.loads(json.dumps(found.to_dict()))
    assert content["schema_version"] == 1
    assert content["as_it_is"]["short_bytes"] == 7 * GIB
    assert content["chosen"]["settings"]["micro_batch_size"] == 1
    assert {"name", "need_bytes", "saved_bytes", "cost", "blocked", "fits"} <= content["changes"][0].keys()


def test_the_text_says_how_much_memory_is_missing_and_where():
    text = str(ask(gpu="7GiB"))
    assert "needs 14.00 GiB; 7GiB has 7.00 GiB" in text
    assert "short by 7.00 GiB in " in text
    assert "the gentlest set that fits: " in text
    assert "micro_batch_size 1 (7.00 GiB); 2 needs 8.00 GiB" in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_wider_and_no_name_is_cut(width):
    found = ask(gpu="4.6GiB", num_gpus=1)
    found = replace(found, report=replace(found.report, why="something that is not modelled " * 5))
    text = render_fit(found, width)
    assert max(map(len, text.splitlines())) <= max(width, 80)
    assert "cut-cross-entropy" in text
    assert " ".join(text.split()).count("something that is not modelled") == 5


def test_candidates_say_what_they_cost_and_do():
    for candidate in CANDIDATES:
        assert candidate.cost
        assert len(candidate.about.strip().splitlines()) >= 3, candidate.name
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)


def test_the_patch_of_a_real_run_makes_it_fit(tmp_path, capsys):
    config = {
        **CONFIG,
        "base_model": "Qwen/Qwen3-0.6B",
        "overrides_of_model_config": {"num_hidden_layers": 2},
        "sequence_len": 512,
        "lora_r": 8,
        "adapter": "lora",
        "load_in_4bit": False,
        "micro_batch_size": 4,
    }
    path, changed = tmp_path / "run.yml", tmp_path / "changed.yml"
    path.write_text(yaml.safe_dump(config))
    card = ["--gpu", "3GiB", "--offline"]
    assert command_line.main([str(path), *card]) == 3
    capsys.readouterr()
    assert command_line.main(["fit", str(path), *card, "-o", str(changed)]) == 0
    streams = capsys.readouterr()
    patch = yaml.safe_load(streams.out)
    assert "the gentlest set that fits" in streams.err
    assert yaml.safe_load(changed.read_text()) == {**config, **patch}
    assert command_line.main([str(changed), *card]) == 0
