"""How many GPUs, their mesh, and the engine that distributes the run over them.

Source: axolotl 0.19 and 0.21 `utils/trainer.py` `prepare_optim_env`, `setup_parallelism_envs`, `utils/distributed.py`,
`utils/config/__init__.py` `normalize_config`; accelerate 1.15 `state.py`, `parallelism_config.py`.
"""

from __future__ import annotations

from axmem_trace.config.derive.deepspeed import derive_zero, note_file
from axmem_trace.config.derive.fsdp import derive_fsdp, fsdp_version
from axmem_trace.config.derive.rank_stops import refuse_certain_stops
from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.parallel_plugins import context_parallel_size
from axmem_trace.recipe.parallel import Ddp, Engine, Fsdp, Mesh, Parallel, Zero, engine_name
from axmem_trace.recipe.run import VALIDATED_LORA_KERNEL_KEYS

AXES = {
    "dp_replicate_size": "replicate",
    "dp_shard_size": "shard",
    "context_parallel_size": "context",
    "expert_parallel_size": "expert",
    "tensor_parallel_size": "tensor",
}
"""Key of the configuration -> size of the mesh."""


def uses_fsdp(draft: Draft) -> bool:
    """`is_fsdp_enabled` of axolotl's `loaders/model.py`."""
    return draft.has("fsdp") or draft.has("fsdp_config")


def derive_parallel(draft: Draft, gpus: int, nodes: int = 1) -> Parallel:
    """`Parallel` from the keys and from the number of GPUs on the command line.

    Args:
        gpus: the number of GPUs on each machine; 0: not given.
        nodes: the number of machines.

    Raises:
        ConfigError: the product of the sizes is not the number of GPUs, or no engine supports them.
    """
    zero = derive_zero(draft)
    note_file(draft)
    named = _named_engine(draft, zero)
    sizes = {axis: draft.get(key) or 1 for key, axis in AXES.items() if draft.is_live(key)}
    sizes["context"] = context_parallel_size(draft)
    num_ranks = _count(draft, gpus * nodes, named, Mesh(**sizes))
    engine: Engine = "none" if num_ranks == 1 and named != "tensor" else named
    _refuse_kernels(draft, engine)
    refuse_certain_stops(draft, engine, num_ranks)
    mesh = _make_mesh(draft, engine, num_ranks, Mesh(**sizes))
    parallel = Parallel(
        engine=engine,
        num_gpus=num_ranks,
        num_nodes=nodes,
        count_is_assumed=num_ranks > 1 and not gpus,
        mesh=mesh,
        fsdp=derive_fsdp(draft, fsdp_version(draft)) if uses_fsdp(draft) and engine != "tensor" else Fsdp(),
        ddp=_derive_ddp(draft),
        zero=zero,
        syncs_each_batch=_syncs_each_batch(draft) or (engine == "tensor" and not uses_fsdp(draft)),
    )
    _say(draft, parallel, named)
    return parallel


def _named_engine(draft: Draft, zero: Zero) -> Engine:
    """The engine of a run with more than one GPU.

    Tensor parallelism comes first: transformers shards the model while it is loaded, and axolotl's FSDP gets a model that is
    already sharded (`fsdp2_prepare_model`). FSDP comes before DeepSpeed (`prepare_optim_env`). DDP is used if nothing is
    configured.
    """
    if (draft.get("tensor_parallel_size") or 1) > 1 and (uses_fsdp(draft) or not zero.stage):
        return "tensor"
    if uses_fsdp(draft):
        return "fsdp1" if fsdp_version(draft) == 1 else "fsdp2"
    by_stage: dict[int, Engine] = {1: "zero1", 2: "zero2", 3: "zero3"}
    return by_stage.get(zero.stage, "ddp")


def _count(draft: Draft, said: int, engine: Engine, mesh: Mesh) -> int:
    """The number of GPUs of the run: the given number, else the smallest that the configuration can use."""
    if said:
        return said
    return max(mesh.num_ranks, 2 if engine != "ddp" or draft.get("ddp") else 1)


def _make_mesh(draft: Draft, engine: Engine, num_ranks: int, said: Mesh) -> Mesh:
    """accelerate's mesh: sizes that are not set are 1, and the product must be the number of ranks; without any size the
    engine uses all ranks."""
    if engine == "none":
        return Mesh()
    if engine == "tensor":
        return _mesh_of_tensor(draft, num_ranks, said)
    if said.num_ranks == 1:
        return Mesh(replicate=num_ranks) if engine == "ddp" else Mesh(shard=num_ranks)
    given = [key for key, axis in AXES.items() if getattr(said, axis) > 1]
    if said.shard > 1 and not uses_fsdp(draft):
        raise draft.error(
            "dp_shard_size needs an fsdp_config", "dp_shard_size", remedy="add one, or remove dp_shard_size"
        )
    if engine == "fsdp2" and given == ["dp_replicate_size"]:
        raise draft.error(
            "accelerate refuses FSDP2 with only dp_replicate_size",
            "dp_replicate_size",
            remedy="add `dp_shard_size`, so that the product is the number of GPUs",
        )
    if said.num_ranks != num_ranks and engine in ("fsdp2", "ddp"):
        raise draft.error(
            f"{' x '.join(given)} = {said.num_ranks}, but the run has {num_ranks} GPUs: accelerate refuses to start",
            given[0],
            remedy=f"run on {said.num_ranks} GPUs, or change the sizes so that their product is {num_ranks}",
        )
    return said


def _mesh_of_tensor(draft: Draft, num_ranks: int, said: Mesh) -> Mesh:
    """The mesh under tensor parallelism. transformers shards each rank's part of a layer over all other ranks with FSDP2
    (axolotl 0.21 `loaders/model.py` `_build_model`: `fsdp_size`), with or without `dp_shard_size`."""
    if said.shard > 1 and not uses_fsdp(draft):
        raise draft.error(
            "dp_shard_size needs an fsdp_config", "dp_shard_size", remedy="add one, or remove dp_shard_size"
        )
    if num_ranks % said.tensor or (said.shard > 1 and said.num_ranks != num_ranks):
        key = "tensor_parallel_size" + (" x dp_shard_size" if said.shard > 1 else "")
        sizes = f"{said.tensor} x {said.shard}" if said.shard > 1 else str(said.tensor)
        raise draft.error(
            f"{key}: {sizes}, but the run has {num_ranks} GPU{'s' if num_ranks > 1 else ''}: transformers refuses to load",
            "tensor_parallel_size",
            remedy=f"run on {said.num_ranks} GPUs, or change the sizes",
        )
    return Mesh(tensor=said.tensor, shard=num_ranks // said.tensor)


def _refuse_kernels(draft: Draft, engine: Engine) -> None:
    """`check_multigpu_lora_kernels` of axolotl 0.19."""
    asked = [key for key in VALIDATED_LORA_KERNEL_KEYS if draft.get(key)]
    if engine == "fsdp1" and asked:
        problem = "axolotl's LoRA kernels are not compatible with FSDP1 (the figures are without them)"
        draft.refuse(problem, asked[0], remedy=f"set `fsdp_version: 2`, or remove {', '.join(asked)}")
        draft.values.update(dict.fromkeys(asked, False))


def _derive_ddp(draft: Draft) -> Ddp:
    """`ddp_find_unused_parameters` is false unless it is set (`core/builders/causal.py`)."""
    broadcasts = draft.get("ddp_broadcast_buffers")
    return Ddp(
        bucket_cap_mb=draft.get("ddp_bucket_cap_mb") or 0,
        finds_unused=bool(draft.get("ddp_find_unused_parameters")),
        broadcasts_buffers=broadcasts if broadcasts is not None else True,
    )


def _syncs_each_batch(draft: Draft) -> bool:
    """`accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}`. accelerate can postpone the exchange
    of gradients only under an FSDP2 that it has configured itself (1.15 `accelerator.py` `no_sync`)."""
    kwargs = draft.sub("accelerator_config").get("gradient_accumulation_kwargs")
    return bool(isinstance(kwargs, dict) and kwargs.get("sync_each_batch"))


def _say(draft: Draft, parallel: Parallel, named: Engine) -> None:
    """Adds reasons, and notes on what the figures leave out."""
    if (draft.get("tensor_parallel_size") or 1) > 1 and named != "tensor":
        text = "DeepSpeed's tensor parallelism (AutoTP) is not in the figures: it splits weights and part of the activations"
        draft.note("not_modelled", "tensor_parallel_size", text, direction="less")
    key = "fsdp_config" if uses_fsdp(draft) else "deepspeed" if draft.has("deepspeed") else ""
    key = "tensor_parallel_size" if named == "tensor" else key
    if parallel.engine == "none":
        if key:
            draft.note("warning", key, f"{engine_name(named)} has no effect on one GPU: give the number with --gpus")
        return
    text = f"`{key}`" if key else "several GPUs and neither fsdp_config nor deepspeed"
    draft.reason("parallel.engine", parallel.engine, text, key=key, origin=None if key else "derived")
    if parallel.count_is_assumed:
        text = (
            f"the number of GPUs is not given: {parallel.num_gpus} is the least for this configuration (--gpus sets it)"
        )
        draft.reason("parallel.num_gpus", parallel.num_gpus, text, origin="derived")
        draft.note("assumed", "--gpus", text)
