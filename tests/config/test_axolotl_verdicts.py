"""Beside axolotl's own validator: what it accepted, refused and derived for each case of `axolotl_verdicts.json`.

The record is made by `record_axolotl_verdicts.py`, which runs axolotl 0.19.0 itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from axmem_trace.config.reader import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.lines import as_error
from axmem_trace.recipe.recipe import Recipe

RECORD = json.loads((Path(__file__).parent / "axolotl_verdicts.json").read_text(encoding="utf-8"))
CASES: dict[str, dict[str, Any]] = RECORD["cases"]
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
    "big": "are no batch",
    "lora_nomod": "names nothing to adapt",
    "lora_nor": "no rank",
    "lora_r_zero": "at least 1",
    "llama_adapter": "cannot start",
    "ds_l8": "names nothing to adapt",
    "qme": "names nothing to adapt",
    "emb": "names nothing to adapt",
    "old_empty_opt": "the optimizer is empty",
    "old_lionpt": "removed",
    "old_adamw_torch_npu": "Ascend NPUs",
    "old_optim_args_bad": "not of the form key=value",
}
"""Accepted by axolotl's validator, refused here: the run stops later, in peft, the Trainer or the data loader."""
NOT_ASKED = {"plug_mod", "old_datasets_null", "old_l8_false_str"}
"""Refused by axolotl for what memory does not depend on, or because a rule sees the text `'false'` before it is parsed."""
RUNTIME_REENTRANT = {"gc_offload", "gc_offload_disk", "ao_true", "ao_legacy", "ao_disk", "sel", "sel_map", "gck_str"}
"""axolotl decides the variant after its configuration: it wraps the layers itself, or reads `'false'` as true."""


def read(name: str) -> Recipe:
    case = CASES[name]
    kept = [line for line in RECORD["common"] if not line.startswith(tuple(case.get("drop", ())) or "\0")]
    values = yaml.safe_load("\n".join(kept + case["lines"]))
    return read_recipe(values, hub="never", gpu="H100", trust_remote_code=True)


def reasons_of(name: str) -> list[ConfigError]:
    """Why the case can't run, with figures or without."""
    try:
        return [as_error(note, "<config>") for note in read(name).refusals]
    except ConfigError as error:
        others, error.others = error.others, ()
        return [error, *others]


def fields_of(name: str) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = CASES[name]["verdict"]["fields"]
    return fields


ACCEPTED = [name for name, case in CASES.items() if case["verdict"]["accepted"]]
REFUSED = [name for name, case in CASES.items() if not case["verdict"]["accepted"]]
READ = [name for name in ACCEPTED if name not in FAILS_LATER]


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return {name: read(name) for name in READ}


def test_the_record_is_of_the_release_that_the_table_is_for():
    from axmem_trace.config.document.key_table import AXOLOTL_VERSION

    assert RECORD["axolotl_version"] == AXOLOTL_VERSION
    assert len(READ) > 250
    assert len(REFUSED) > 100


@pytest.mark.parametrize("name", REFUSED)
def test_what_axolotl_refuses_is_refused(name):
    if name in NOT_ASKED:
        read(name)
        return
    reasons = reasons_of(name)
    assert reasons
    for reason in reasons:
        assert reason.key, "the key to blame is named"
        assert len(str(reason).splitlines()) >= 2, "and what is accepted, or what to do"


@pytest.mark.parametrize("name", FAILS_LATER)
def test_what_stops_after_validation_is_refused_too(name):
    assert name in ACCEPTED
    assert any(FAILS_LATER[name] in reason.problem for reason in reasons_of(name))


def test_load_dtype_and_gradient_scaler(recipes):
    for name, recipe in recipes.items():
        fields = fields_of(name)
        assert f"torch.{recipe.precision.load_dtype}" == fields["torch_dtype"], name
        assert recipe.precision.grad_scaler == bool(fields.get("fp16")), name


def test_fused_lora_kernels_that_axolotl_switches_on(recipes):
    for name, recipe in recipes.items():
        fields = fields_of(name)
        wanted = {kernel for kernel in LORA_KERNELS if fields.get(f"lora_{kernel}_kernel")}
        if name == "old_fsdp_list_lora":  # FSDP1 on several GPUs has none; axolotl's verdict is of a machine with one
            wanted = set()
        if fields.get("adapter") in ("lora", "qlora"):
            assert recipe.kernels.lora == wanted, name
        else:
            assert not recipe.kernels.lora, name


def test_checkpointing(recipes):
    for name, recipe in recipes.items():
        fields = fields_of(name)
        assert recipe.checkpointing.enabled == bool(fields.get("gradient_checkpointing")), name
        kwargs = fields.get("gradient_checkpointing_kwargs") or {}
        if recipe.checkpointing.enabled and "use_reentrant" in kwargs and name not in RUNTIME_REENTRANT:
            assert recipe.checkpointing.use_reentrant == bool(kwargs["use_reentrant"]), name
        assert (recipe.checkpointing.offload != "none") == bool(fields.get("activation_offloading")), name


def texts_of(name):
    """Rows of a sample: a reward's and a preference's are pairs, chosen and rejected."""
    lines = CASES[name]["lines"]
    paired = "reward_model: true" in lines or any(f"rl: {rl}" in lines for rl in ("dpo", "ipo", "simpo", "orpo"))
    return 2 if paired else 1


def test_batch_and_accumulation(recipes):
    for name, recipe in recipes.items():
        fields = fields_of(name)
        assert recipe.batch.gradient_accumulation_steps == fields["gradient_accumulation_steps"], name
        flattened = bool(fields.get("batch_flattening"))
        assert recipe.batch.packed == (bool(fields.get("sample_packing")) or flattened), name
        if not recipe.batch.packed:
            assert recipe.batch.rows == fields["micro_batch_size"] * texts_of(name), name
        assert recipe.batch.neftune == bool(fields.get("neftune_noise_alpha")), name


def test_evaluation(recipes):
    for name, recipe in recipes.items():
        fields = fields_of(name)
        has_data = bool(fields.get("val_set_size")) or any("test_datasets" in line for line in CASES[name]["lines"])
        runs = bool(fields.get("eval_steps")) or (fields.get("eval_strategy") or "no") != "no"
        assert recipe.evaluation.enabled == (has_data and runs), name
        if recipe.evaluation.enabled:
            assert recipe.evaluation.packed == bool(fields.get("eval_sample_packing")), name
        if recipe.evaluation.enabled and not recipe.evaluation.packed:
            assert recipe.evaluation.rows == fields["eval_batch_size"] * texts_of(name), name


def test_optimizer_and_empty_cache(recipes):
    for name, recipe in recipes.items():
        fields = fields_of(name)
        assert recipe.optimizer.name == fields["optimizer"], name
        assert recipe.allocator.empty_cache_steps == (fields.get("torch_empty_cache_steps") or 0), name


def test_attention(recipes):
    other = {"kernels-community/flash-attn3": "flash_attention_3", "org/unknown": "flash_attention_2", "fp8": "sdpa"}
    for name, recipe in recipes.items():
        asked = fields_of(name).get("attn_implementation") or "sdpa"
        wanted = {other.get(asked, asked)}
        if asked == "sdpa" and recipe.batch.packed:
            wanted.add("varlen")  # installed after validation
        assert recipe.attention.kernel in wanted, name


def test_class_of_the_model_by_its_other_name(recipes):
    """pydantic looks for the alias first: `model_type` wins over `type_of_model`."""
    assert fields_of("mtype2")["type_of_model"] == "LlamaForCausalLM" == recipes["mtype2"].model.type_of_model
