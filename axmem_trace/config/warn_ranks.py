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
            f"with {steps} accumulation steps each GPU keeps full gradients of all trained weights, not its part, until the "
            "last of them: the Trainer reduces them once. Parts alone, for more exchange, with `accelerator_config: "
            "{gradient_accumulation_kwargs: {sync_each_batch: true}}`"
        )
        draft.note("warning", "gradient_accumulation_steps", text)
    if parallel.engine == "tensor":
        return
    if not parallel.fsdp.loads_on_host and recipe.quantisation.method == "none":
        text = (
            "each GPU holds the whole model while it is loaded: `cpu_ram_efficient_loading: true` under fsdp_config sends "
            "it in parts"
        )
        draft.note("warning", "fsdp_config", text)
    if parallel.engine == "fsdp1" and parallel.fsdp.saves_whole:
        text = (
            "saving FSDP1's full state dict is not in the figures: the root's unit and one layer are whole then, as stored, "
            "in addition to weights and states; assumed to be less than a step, which has gradients and activations too"
        )
        draft.note("assumed", "fsdp_config", text)
    if parallel.fsdp.saves_whole and not draft.get("save_only_model"):
        text = (
            "with each checkpoint rank 0 collects the optimizer's states too (accelerate's `save_fsdp_optimizer`): whole in "
            "host memory, which is not in the figures, one by one on the GPU; `save_only_model: true` leaves them out"
        )
        draft.note("assumed", "fsdp_config", text)
    if parallel.engine == "fsdp1" and parallel.fsdp.offload_params:
        text = (
            "FSDP1's offload_params is not modelled: shards, their gradients and the optimizer's states are counted on the "
            "GPU, and are in host memory in the run; `fsdp_version: 2` is modelled with it"
        )
        draft.note("not_modelled", "fsdp_config", text, direction="less")
    if parallel.engine == "fsdp1" and recipe.adapter.kind == "none" and parallel.fsdp.param_dtype:
        text = (
            "FSDP1 trains fp32 copies of half-precision weights: 16 bytes per parameter over all GPUs, where FSDP2 "
            "(`fsdp_version: 2`) takes 8, all in half precision"
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
    """transformers divides the model while it is loaded, and axolotl's preparation returns at once
    (`monkeypatch/accelerate/fsdp2.py` `fsdp2_prepare_model`)."""
    given = [name for name in _WITHOUT_EFFECT if draft.sub("fsdp_config").get(name)]
    if given:
        text = (
            f"{', '.join(given)} under fsdp_config have no effect with tensor parallelism: transformers divides the model "
            "itself, and keeps norm and head whole from forward to backward"
        )
        draft.note("warning", "fsdp_config", text)
    if draft.get("cut_cross_entropy"):
        text = "Cut Cross Entropy takes the head's weight, which is divided: whether it runs, and on what, is not known"
        draft.note("not_modelled", "cut_cross_entropy", text, direction="either")
    mesh = recipe.parallel.mesh
    if mesh.shard > 1 and not draft.get("fsdp_config"):
        text = (
            f"{mesh.tensor * mesh.shard} GPUs are {mesh.shard} times as many as tensor_parallel_size: transformers divides "
            "the parameters among the others by FSDP2, without an fsdp_config too"
        )
        draft.note("warning", "tensor_parallel_size", text)
