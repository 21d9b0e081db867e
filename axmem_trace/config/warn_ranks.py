"""Effects on several GPUs that the author of a configuration may not expect."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Recipe


def note_warnings_of_ranks(draft: Draft, recipe: Recipe) -> None:
    """Adds a warning for each such effect of FSDP."""
    parallel = recipe.parallel
    if parallel.engine == "tensor":
        _warn_of_tensor(draft, recipe)
    if parallel.engine not in ("fsdp1", "fsdp2") and not (parallel.engine == "tensor" and parallel.mesh.shard > 1):
        return
    steps = recipe.batch.gradient_accumulation_steps
    if steps > 1 and not parallel.syncs_each_batch:
        text = (
            f"with {steps} accumulation steps each GPU keeps unsharded gradients of all trained weights until the last of "
            "these steps, because the Trainer reduces them only once. With `accelerator_config: "
            "{gradient_accumulation_kwargs: {sync_each_batch: true}}` it keeps only its shard, and exchanges more often"
        )
        draft.note("warning", "gradient_accumulation_steps", text)
    if parallel.engine == "tensor":
        return
    if not parallel.fsdp.loads_on_host and recipe.quantisation.method == "none":
        text = (
            "each GPU holds the whole model while it is loaded. With `cpu_ram_efficient_loading: true` under fsdp_config "
            "the model is sent to the GPUs in parts"
        )
        draft.note("warning", "fsdp_config", text)
    if parallel.engine == "fsdp1" and parallel.fsdp.saves_whole:
        text = (
            "saving FSDP1's full state dict is not in the figures. It gathers the root's unit and one layer, in addition to "
            "weights and states. This is assumed to be less than a step, which has gradients and activations too"
        )
        draft.note("assumed", "fsdp_config", text)
    if parallel.engine == "fsdp1" and parallel.fsdp.saves_states == "whole":
        text = (
            "with each checkpoint rank 0 also collects the optimizer's states (accelerate's `save_fsdp_optimizer`). They "
            "are all in host memory, which is not in the figures, and those of one unit at a time on the GPU. "
            "`save_only_model: true` avoids this"
        )
        draft.note("assumed", "fsdp_config", text)
    if parallel.engine == "fsdp1" and recipe.adapter.kind == "none" and parallel.fsdp.param_dtype:
        text = (
            "FSDP1 trains fp32 copies of half-precision weights: 16 bytes per parameter over all GPUs. FSDP2 "
            "(`fsdp_version: 2`) needs 8, all in half precision"
        )
        draft.note("warning", "fsdp_config", text)


_WITHOUT_EFFECT = (
    "reshard_after_forward",
    "offload_params",
    "transformer_layer_cls_to_wrap",
    "auto_wrap_policy",
    "cpu_ram_efficient_loading",
    "activation_checkpointing",
)


def _warn_of_tensor(draft: Draft, recipe: Recipe) -> None:
    """transformers shards the model while it is loaded, and axolotl's preparation returns without doing anything
    (`monkeypatch/accelerate/fsdp2.py` `fsdp2_prepare_model`)."""
    given = [name for name in _WITHOUT_EFFECT if draft.sub("fsdp_config").get(name)]
    if given:
        text = (
            f"{', '.join(given)} under fsdp_config have no effect with tensor parallelism: transformers shards the model "
            "itself, and keeps norm and head gathered from forward to backward"
        )
        draft.note("warning", "fsdp_config", text)
    if draft.get("cut_cross_entropy"):
        text = "Cut Cross Entropy uses the head's weight, which is sharded: it is not known whether the run works"
        draft.note("not_modelled", "cut_cross_entropy", text, direction="either")
    mesh = recipe.parallel.mesh
    if mesh.shard > 1 and not draft.get("fsdp_config"):
        text = (
            f"{mesh.tensor * mesh.shard} GPUs are {mesh.shard} times as many as tensor_parallel_size: transformers shards "
            "the parameters over the other GPUs with FSDP2, even without an fsdp_config"
        )
        draft.note("warning", "tensor_parallel_size", text)
