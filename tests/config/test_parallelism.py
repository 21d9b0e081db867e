"""The number of GPUs, their mesh and the engine, from the keys and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.config.derive.deepspeed import STOCK
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.parallel import Mesh, Parallel, Zero
from axmem_trace.recipe.recipe import Recipe


def read(tmp_path: Path, *, gpus: int = 0, nodes: int = 1, gpu: str = "", axolotl: str = "", **keys: Any) -> Recipe:
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 1,
        "bf16": True,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    return read_recipe(config, hub="never", num_gpus=gpus, num_nodes=nodes, gpu=gpu, axolotl=axolotl)


def test_one_gpu_has_no_engine(tmp_path: Path) -> None:
    assert read(tmp_path).parallel == Parallel()
    assert read(tmp_path, gpus=1).parallel == Parallel()


def test_several_gpus_without_an_engine_are_ddp(tmp_path: Path) -> None:
    parallel = read(tmp_path, gpus=8).parallel
    assert (parallel.engine, parallel.num_gpus, parallel.mesh) == ("ddp", 8, Mesh(replicate=8))
    assert not parallel.count_is_assumed


def test_gpus_are_those_of_each_machine(tmp_path: Path) -> None:
    parallel = read(tmp_path, gpus=8, nodes=2).parallel
    assert (parallel.num_gpus, parallel.num_nodes) == (16, 2)


@pytest.mark.parametrize("text", ["4 x A100-40GB", "4xA100-40GB", "4 \u00d7 A100-40GB", "4 * A100-40GB"])
def test_the_card_option_may_contain_a_count(tmp_path: Path, text: str) -> None:
    recipe = read(tmp_path, gpu=text)
    assert (recipe.gpu.name, recipe.gpu.count, recipe.parallel.engine) == ("A100-40GB", 4, "ddp")


def test_a_size_of_memory_is_not_a_count(tmp_path: Path) -> None:
    assert read(tmp_path, gpu="24GiB").parallel.num_gpus == 1


def test_two_counts_must_agree(tmp_path: Path) -> None:
    assert read(tmp_path, gpu="4 x H100", gpus=4).parallel.num_gpus == 4
    with pytest.raises(ConfigError, match="different numbers"):
        read(tmp_path, gpu="4 x H100", gpus=8)


def test_an_engine_without_a_count_gets_the_fewest_gpus(tmp_path: Path) -> None:
    recipe = read(tmp_path, fsdp_version=2, fsdp_config={"reshard_after_forward": True})
    assert (recipe.parallel.num_gpus, recipe.parallel.count_is_assumed) == (2, True)
    assert any(note.key == "--gpus" and note.kind == "assumed" for note in recipe.notes)


def test_the_mesh_determines_the_smallest_number_of_gpus(tmp_path: Path) -> None:
    recipe = read(tmp_path, fsdp_version=2, fsdp_config={}, dp_shard_size=4, dp_replicate_size=2)
    assert recipe.parallel.num_gpus == 8
    assert recipe.parallel.mesh == Mesh(shard=4, replicate=2)
    assert recipe.parallel.mesh.num_shards == 4


def test_shards_span_the_context_axis(tmp_path: Path) -> None:
    """axolotl's mesh: `dp_shard_cp` (accelerate `parallelism_config.py` `fsdp_dim_names`)."""
    keys = {"dp_shard_size": 2, "context_parallel_size": 2, "attn_implementation": "flash_attention_2"}
    recipe = read(tmp_path, gpus=4, fsdp_version=2, fsdp_config={}, **keys)
    assert recipe.parallel.mesh.num_shards == 4
    assert recipe.parallel.context.size == 2


@pytest.mark.parametrize(
    "keys",
    [
        {"dp_shard_size": 4, "fsdp_version": 2, "fsdp_config": {}},  # 4 of 8 ranks
        {"dp_shard_size": 8},  # nothing that shards
        {"dp_replicate_size": 8, "fsdp_version": 2, "fsdp_config": {}},  # nothing is sharded
    ],
)
def test_a_mesh_that_accelerate_refuses_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="dp_"):
        read(tmp_path, gpus=8, **keys)


def test_fsdp_gets_the_settings_of_the_file(tmp_path: Path) -> None:
    config = {
        "reshard_after_forward": False,
        "cpu_ram_efficient_loading": True,
        "activation_checkpointing": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer, LlamaMLP",
    }
    fsdp = read(tmp_path, gpus=4, fsdp_version=2, fsdp_config=config).parallel.fsdp
    assert fsdp.wrap_classes == ("LlamaDecoderLayer", "LlamaMLP")
    assert (fsdp.reshard_after_forward, fsdp.loads_on_host, fsdp.activation_checkpointing) == (False, True, True)
    assert (fsdp.param_dtype, fsdp.reduce_dtype, fsdp.output_dtype) == ("bfloat16",) * 3


@pytest.mark.parametrize(("keys", "noted"), [({}, True), ({"save_only_model": True}, False)])
def test_optimizer_states_that_rank_0_collects_have_a_note(tmp_path: Path, keys: dict[str, Any], noted: bool) -> None:
    """With FSDP2 they are in the figures."""
    sharding = {"fsdp_version": 1, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}
    notes = read(tmp_path, gpus=2, axolotl="0.19.0", **sharding, **keys).notes
    assert any("rank 0 also collects the optimizer's states" in note.text for note in notes) is noted


def test_fsdp_has_no_effect_on_one_gpu(tmp_path: Path) -> None:
    recipe = read(tmp_path, gpus=1, fsdp_version=2, fsdp_config={"reshard_after_forward": True})
    assert recipe.parallel.engine == "none"
    assert any(note.kind == "warning" and "one GPU" in note.text for note in recipe.notes)


def test_fsdp2_runs_without_autocast(tmp_path: Path) -> None:
    """accelerate's `_prepare_fsdp2` never calls `prepare_model`, so there is no fp32 copy of the logits."""
    sharded = read(tmp_path, gpus=2, fsdp_version=2, fsdp_config={"reshard_after_forward": True}).precision
    replicated = read(tmp_path, gpus=2).precision
    assert (sharded.autocast, sharded.output_dtype) == (False, "same")
    assert (replicated.autocast, replicated.output_dtype) == (True, "float32")


def test_stock_files_are_known_by_name(tmp_path: Path) -> None:
    parallel = read(tmp_path, gpus=8, deepspeed="deepspeed_configs/zero2.json").parallel
    assert (parallel.engine, parallel.zero.reduce_bucket_elements) == ("zero2", 500_000_000)
    assert parallel.zero.offload_optimizer == "cpu"
    assert read(tmp_path, gpus=8, deepspeed="zero3_bf16_cpuoffload_params.json").parallel.zero.offload_params == "cpu"
    assert set(STOCK) >= {"zero1", "zero2", "zero3", "zero3_bf16", "zero3_bf16_cpuoffload_all"}


def test_a_users_file_is_read_and_auto_depends_on_the_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    settings = {"stage": 3, "overlap_comm": True, "reduce_bucket_size": "auto", "stage3_max_live_parameters": 1e8}
    file.write_text(json.dumps({"zero_optimization": settings}))
    zero = read(tmp_path, gpus=8, deepspeed=str(file)).parallel.zero
    assert (zero.stage, zero.reduce_bucket_elements, zero.max_live_elements) == (3, -1, 100_000_000)
    assert zero.source == str(file)


def test_a_mapping_is_accepted_too(tmp_path: Path) -> None:
    recipe = read(tmp_path, gpus=2, deepspeed={"zero_optimization": {"stage": 1, "overlap_comm": True}})
    assert recipe.parallel.zero == Zero(stage=1, overlaps=True, source="the configuration")
    assert recipe.parallel.engine == "zero1"
    # without a section "bf16", DeepSpeed takes the model for fp32
    assert any(note.kind == "not_modelled" and '"bf16"' in note.text for note in recipe.notes)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "fp32"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "NVMe"),
        ({"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}}, "quantised exchange of gradients"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor parallelism"),
    ],
)
def test_settings_of_deepspeed_that_are_not_modelled_are_reported(
    tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    known = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}
    assert not [n for n in read(tmp_path, gpus=2, deepspeed=known).notes if n.kind == "not_modelled"]
    notes = read(tmp_path, gpus=2, deepspeed={**known, **settings}).notes
    (note,) = [each for each in notes if each.kind == "not_modelled"]
    assert what in note.text
    assert note.direction


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_clipping": 0.5},
        {"train_micro_batch_size_per_gpu": 3},
        {"gradient_accumulation_steps": 2},
        {"bf16": {"enabled": False}},
    ],
)
def test_values_that_the_trainer_does_not_have_make_the_run_fail(tmp_path: Path, settings: dict[str, Any]) -> None:
    known = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}
    notes = read(tmp_path, gpus=2, deepspeed={**known, **settings}).notes
    assert [note.key for note in notes if note.kind == "refused"] == ["deepspeed"]


def test_each_release_has_its_own_deepspeed(tmp_path: Path) -> None:
    old = read(tmp_path, gpus=2, axolotl="0.19.0", deepspeed="zero1.json").parallel.zero
    new = read(tmp_path, gpus=2, axolotl="0.21.0", deepspeed="zero1.json").parallel.zero
    assert (old.casts_buffers, old.checks_overflow) == (True, False)
    assert (new.casts_buffers, new.checks_overflow) == (False, True)


def test_zero3_of_an_older_deepspeed_has_no_verdict(tmp_path: Path) -> None:
    def missing(axolotl: str, file: str) -> list[str]:
        notes = read(tmp_path, gpus=2, axolotl=axolotl, deepspeed=file).notes
        return [note.direction for note in notes if note.kind == "not_modelled"]

    assert missing("0.19.0", "zero3_bf16.json") == ["either"]
    assert missing("0.19.0", "zero2.json") == missing("0.21.0", "zero3_bf16.json") == []


def test_deepspeed_runs_without_autocast_and_scales_the_loss_itself(tmp_path: Path) -> None:
    precision = read(tmp_path, gpus=2, deepspeed="zero2.json", bf16=False, fp16=True).precision
    assert (precision.autocast, precision.output_dtype, precision.grad_scaler) == (False, "same", False)


def test_an_unknown_file_is_reported(tmp_path: Path) -> None:
    recipe = read(tmp_path, gpus=2, deepspeed="somewhere/else.json")
    assert any(note.kind == "not_modelled" and "is not here" in note.text for note in recipe.notes)


def test_nccl_needs_memory_outside_the_allocator(tmp_path: Path) -> None:
    # H100: 24 channels of 10 + 2 MiB, and 256 MiB for reductions in the switch
    assert read(tmp_path, gpus=8, gpu="H100").gpu.nccl_bytes == (24 * 12 + 256) << 20
    # A100: only the channels
    assert read(tmp_path, gpus=8, gpu="A100-80GB").gpu.nccl_bytes == 24 * 12 << 20
    # shards, copies, and all ranks: three communicators
    keys = {"fsdp_version": 2, "fsdp_config": {}, "dp_shard_size": 4, "dp_replicate_size": 2}
    hsdp = read(tmp_path, gpus=8, gpu="A100-80GB", **keys)
    assert hsdp.gpu.nccl_bytes == 3 * (24 * 12 << 20)
    assert any("(all ranks, copies, shards)" in note.text for note in hsdp.notes)
    assert read(tmp_path, gpu="H100").gpu.nccl_bytes == 0
    assert read(tmp_path, gpus=8, gpu="RTX 4090").gpu.nccl_bytes < 24 * 12 << 20


def warnings_of(recipe: Recipe) -> list[str]:
    return [note.text for note in recipe.notes if note.kind == "warning"]


def test_whole_gradients_and_whole_models_have_a_warning(tmp_path: Path) -> None:
    keys = {"fsdp_version": 2, "gradient_accumulation_steps": 4}
    costly = warnings_of(read(tmp_path, gpus=8, fsdp_config={"reshard_after_forward": True}, **keys))
    assert any("sync_each_batch" in text for text in costly)
    assert any("cpu_ram_efficient_loading" in text for text in costly)
    synced = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    config = {"cpu_ram_efficient_loading": True}
    cheap = warnings_of(read(tmp_path, gpus=8, fsdp_config=config, accelerator_config=synced, **keys))
    assert not any("sync_each_batch" in text or "cpu_ram_efficient" in text for text in cheap)


def test_fsdp1s_fp32_copies_have_a_warning(tmp_path: Path) -> None:
    config = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    first, second = (
        warnings_of(read(tmp_path, gpus=2, fsdp_version=version, fsdp_config=config, axolotl="0.19.0"))
        for version in (1, 2)
    )
    assert any("16 bytes" in text for text in first)
    assert not any("16 bytes" in text for text in second)
