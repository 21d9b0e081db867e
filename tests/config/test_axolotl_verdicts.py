"""Compares with axolotl's own validator: the cases of `axolotl_cases.json` that each release accepted or refused, and
the derived values.

`record_axolotl_verdicts.py` makes the records; it runs axolotl itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from axmem_trace.config.axolotl import RELEASES
from axmem_trace.config.reader import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.notes import RefusalNote
from axmem_trace.recipe.lines import as_error
from axmem_trace.recipe.recipe import Recipe

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "axolotl_cases.json").read_text(encoding="utf-8"))
CASES: dict[str, dict[str, Any]] = RECORD["cases"]
VERDICTS: dict[str, dict[str, dict[str, Any]]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((HERE / "axolotl_verdicts").glob("*.json"))
}
"""By release and case."""
LORA_KERNELS = ("mlp", "qkv", "o", "embedding")

FAILS_LATER = {
    "opt_lion_pytorch": "removed",
    "opt_ao_adamw_8bit": "Unhandled optimizer",
    "opt_ao_adamw_4bit": "Unhandled optimizer",
    "opt_shampoo": "knows this optimizer",
    "opt_adamw_torch_xla": "TPUs",
    "opt_null": "the optimizer is empty",
    "mbs_zero": "at least 1",
    "seq_zero": "at least 1",
    "neg": "at least 1",
    "big": "are too large for a batch",
    "lora_nomod": "has no target modules",
    "lora_nor": "no rank",
    "lora_r_zero": "at least 1",
    "llama_adapter": "cannot start",
    "ds_l8": "has no target modules",
    "qme": "has no target modules",
    "emb": "has no target modules",
    "old_empty_opt": "the optimizer is empty",
    "old_lionpt": "removed",
    "old_adamw_torch_npu": "Ascend NPUs",
    "old_optim_args_bad": "not of the form key=value",
    "release_qat": "no fake quantisation of int8 weights",
    "release_scatter_quantised": "has no target modules",
    "release_mixlora_gc": "has no target modules",
    "release_mixlora_plugin": "has no target modules",
}
"""Cases that axolotl's validator accepts and that are refused here, because the run fails later: in peft, the Trainer
or the data loader."""
_NO_MIXLORA = dict.fromkeys(
    ("experts_0", "fuse", "gc", "no_alpha", "no_r", "plugin", "rl", "top_k"), "no plugin registers it"
)
_NO_MUON_8BIT = {
    "release_muon_8bit": "knows this optimizer",
    "release_muon_8bit_deepspeed": "incompatible with DeepSpeed",
    "release_muon_8bit_fsdp": "knows this optimizer",
}
FAILS_LATER_IN: dict[str, dict[str, str]] = {
    "0.19.0": {
        **{f"release_mixlora_{name}": why for name, why in _NO_MIXLORA.items()},
        **_NO_MUON_8BIT,
        "release_muon_8bit_fsdp": "only compatible with FSDP2",
        "release_scao": "knows this optimizer",
        "release_scao_lora": "knows this optimizer",
    },
    "0.20.0": _NO_MUON_8BIT,
}
"""The same, of one release."""
NOT_ASKED = {"old_datasets_null", "old_l8_false_str"}
"""Cases that axolotl refuses because of something without effect on memory, or because a rule reads the text `'false'`
before it is parsed."""
NOT_ASKED_IN: dict[str, set[str]] = {
    "0.19.0": {
        "release_cp_flash",
        "release_cp_ring_func",
        "release_grpo_colocate_cp",
        "release_sp_old",
        "release_use_dft_cp",
        "release_use_eaft_cp",
    },
    "0.20.0": {"release_fsdp_fp8_gather"},
    "0.21.0": {"release_fsdp_fp8_gather", "release_plugin_missing"},
}
"""Cases that axolotl refused because a package was not installed when they were recorded: ring_flash_attn, torchao, a
plugin's package."""


def read(release: str, name: str) -> Recipe:
    case = CASES[name]
    kept = [line for line in RECORD["common"] if not line.startswith(tuple(case.get("drop", ())) or "\0")]
    values = yaml.safe_load("\n".join(kept + case["lines"]))
    return read_recipe(values, hub="never", gpu="H100", trust_remote_code=True, axolotl=release)


def reasons_of(release: str, name: str) -> list[ConfigError]:
    """The reasons why the case can't run, with or without figures."""
    try:
        return [as_error(note, "<config>") for note in read(release, name).refusals]
    except ConfigError as error:
        others, error.others = error.others, ()
        return [error, *others]


def fails_later(release: str, name: str) -> bool:
    return name in FAILS_LATER or name in FAILS_LATER_IN.get(release, {})


def names_of(release: str, *, accepted: bool) -> list[str]:
    return [name for name, verdict in VERDICTS[release].items() if verdict["accepted"] is accepted]


REFUSED = [(release, name) for release in VERDICTS for name in names_of(release, accepted=False)]
STOPPED = [
    (release, name) for release in VERDICTS for name in names_of(release, accepted=True) if fails_later(release, name)
]


@dataclass(frozen=True)
class Read:
    """The cases that one release accepts: our recipe of each case, and axolotl's fields."""

    release: str
    recipes: dict[str, Recipe]

    def __iter__(self) -> Iterator[tuple[str, Recipe, Mapping[str, Any]]]:
        for name, recipe in self.recipes.items():
            yield name, recipe, VERDICTS[self.release][name]["fields"]


@pytest.fixture(scope="module", params=VERDICTS)
def read_cases(request: pytest.FixtureRequest) -> Read:
    release = request.param
    names = [name for name in names_of(release, accepted=True) if not fails_later(release, name)]
    return Read(release, {name: read(release, name) for name in names})


def test_every_release_is_recorded_with_every_case(read_cases):
    assert list(VERDICTS) == [release.version for release in RELEASES]
    assert VERDICTS[read_cases.release].keys() == CASES.keys()
    assert len(read_cases.recipes) > 400
    assert len(names_of(read_cases.release, accepted=False)) > 150


@pytest.mark.parametrize(("release", "name"), REFUSED)
def test_configurations_that_axolotl_refuses_are_refused(release, name):
    if name in NOT_ASKED or name in NOT_ASKED_IN.get(release, ()):
        read(release, name)
        return
    reasons = reasons_of(release, name)
    assert reasons
    for reason in reasons:
        assert reason.key, "the key that is the reason is named"
        assert len(str(reason).splitlines()) >= 2, "and what is accepted, or what to do"


@pytest.mark.parametrize(("release", "name"), STOPPED)
def test_runs_that_fail_after_validation_are_refused(release, name):
    why = FAILS_LATER_IN.get(release, {}).get(name) or FAILS_LATER[name]
    assert any(why in reason.problem for reason in reasons_of(release, name))


def test_configurations_that_axolotl_accepts_are_not_refused(read_cases):
    for name, recipe, _ in read_cases:
        assert not [note for note in recipe.refusals if note.text.startswith("axolotl refuses this")], name


def test_load_dtype_and_gradient_scaler(read_cases):
    for name, recipe, fields in read_cases:
        assert f"torch.{recipe.precision.load_dtype}" == fields["torch_dtype"], name
        assert recipe.precision.grad_scaler == bool(fields.get("fp16")), name


def test_fused_lora_kernels_that_axolotl_switches_on(read_cases):
    for name, recipe, fields in read_cases:
        if read_cases.release == "0.19.0" and any("fsdp" in line for line in CASES[name]["lines"]):
            continue  # recorded with one GPU; with more, FSDP1 has none
        wanted = {kernel for kernel in LORA_KERNELS if fields.get(f"lora_{kernel}_kernel")}
        if (
            name == "old_fsdp_list_lora"
        ):  # FSDP1 on several GPUs has none; axolotl's verdict is from a machine with one GPU
            wanted = set()
        if fields.get("adapter") in ("lora", "qlora"):
            assert recipe.kernels.lora == wanted, name
        else:
            assert not recipe.kernels.lora, name


def decides_later(name: str) -> bool:
    """Whether axolotl decides the variant after its configuration. It does so for selective checkpointing, if it reads
    `'false'` as true, and for offloaded activations: it wraps the layers itself, or peft's k-bit preparation is the
    last step."""
    return name == "gck_str" or any("selective_checkpointing" in line for line in CASES[name]["lines"])


def test_checkpointing(read_cases):
    for name, recipe, fields in read_cases:
        assert recipe.checkpointing.enabled == bool(fields.get("gradient_checkpointing")), name
        kwargs = fields.get("gradient_checkpointing_kwargs") or {}
        moved = decides_later(name) or recipe.checkpointing.offload in ("activations", "legacy", "disk")
        if recipe.checkpointing.enabled and "use_reentrant" in kwargs and not moved:
            assert recipe.checkpointing.use_reentrant == bool(kwargs["use_reentrant"]), name
        assert (recipe.checkpointing.offload != "none") == bool(fields.get("activation_offloading")), name


def texts_of(name):
    """The number of rows of a sample: rewards and preferences have pairs, chosen and rejected."""
    lines = CASES[name]["lines"]
    paired = "reward_model: true" in lines or any(f"rl: {rl}" in lines for rl in ("dpo", "ipo", "simpo", "orpo"))
    return 2 if paired else 1


def test_batch_and_accumulation(read_cases):
    for name, recipe, fields in read_cases:
        assert recipe.batch.gradient_accumulation_steps == fields["gradient_accumulation_steps"], name
        flattened = bool(fields.get("batch_flattening"))
        assert recipe.batch.packed == (bool(fields.get("sample_packing")) or flattened), name
        if not recipe.batch.packed:
            assert recipe.batch.rows == fields["micro_batch_size"] * texts_of(name), name
        assert recipe.batch.neftune == bool(fields.get("neftune_noise_alpha")), name


def test_evaluation(read_cases):
    for name, recipe, fields in read_cases:
        has_data = bool(fields.get("val_set_size")) or any("test_datasets" in line for line in CASES[name]["lines"])
        runs = bool(fields.get("eval_steps")) or (fields.get("eval_strategy") or "no") != "no"
        if fields.get("eval_strategy") == "no":  # 0.19 and 0.20 set `eval_on_start` for it (`core/builders/base.py`)
            runs = read_cases.release < "0.21.0"
        assert recipe.evaluation.enabled == (has_data and runs), name
        if recipe.evaluation.enabled:
            assert recipe.evaluation.packed == bool(fields.get("eval_sample_packing")), name
        if recipe.evaluation.enabled and not recipe.evaluation.packed:
            assert recipe.evaluation.rows == fields["eval_batch_size"] * texts_of(name), name


def test_optimizer_and_empty_cache(read_cases):
    for name, recipe, fields in read_cases:
        stops = any(isinstance(note, RefusalNote) and "bitsandbytes" in note.text for note in recipe.notes)
        assert (recipe.optimizer.name == fields["optimizer"]) is not stops, name
        assert recipe.allocator.empty_cache_steps == (fields.get("torch_empty_cache_steps") or 0), name


def test_attention(read_cases):
    other = {"kernels-community/flash-attn3": "flash_attention_3", "org/unknown": "flash_attention_2", "fp8": "sdpa"}
    for name, recipe, fields in read_cases:
        asked = fields.get("attn_implementation") or "sdpa"
        wanted = {other.get(asked, asked)}
        if asked == "sdpa" and recipe.batch.packed:
            wanted.add("varlen")  # installed after validation
        if recipe.parallel.context.ring > 1 and asked == "sdpa":  # axolotl fails later, which is a refusal
            assert any(note.key == "attn_implementation" for note in recipe.notes if isinstance(note, RefusalNote)), (
                name
            )
            wanted = {"flash_attention_2"}
        assert recipe.attention.kernel in wanted, name


def test_class_of_the_model_by_its_other_name(read_cases):
    """pydantic reads the alias first: `model_type` is used, not `type_of_model`."""
    taken = VERDICTS[read_cases.release]["mtype2"]["fields"]["type_of_model"]
    assert taken == "LlamaForCausalLM" == read_cases.recipes["mtype2"].model.type_of_model
