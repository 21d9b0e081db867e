"""How a run is distributed over GPUs: their number, their mesh, and the settings of the engine that distributes the run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from axmem_trace.recipe.model import Dtype

Engine = Literal["none", "ddp", "fsdp1", "fsdp2", "tensor", "zero1", "zero2", "zero3"]
"""The engine that distributes the run: none (one GPU), PyTorch's DistributedDataParallel, its two FSDPs, transformers'
tensor parallelism (with its own FSDP2, if there are more ranks), or DeepSpeed's ZeRO."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """The mesh of the ranks. The product of the sizes is the number of ranks.

    Attributes:
        replicate: groups of ranks that each hold a whole copy of the shards (`dp_replicate_size`).
        shard: ranks over which FSDP or ZeRO shards the parameters (`dp_shard_size`).
        context: ranks over which the tokens of a row are divided (`context_parallel_size`).
        expert: ranks over which experts are divided (`expert_parallel_size`).
        tensor: ranks over which layers are divided (`tensor_parallel_size`).
    """

    replicate: int = 1
    shard: int = 1
    context: int = 1
    expert: int = 1
    tensor: int = 1

    @property
    def num_ranks(self) -> int:
        """The number of ranks of the whole mesh."""
        return self.replicate * self.shard * self.context * self.expert * self.tensor

    @property
    def num_shards(self) -> int:
        """The number of shards of a parameter under FSDP. axolotl shards over the context and expert axes too (0.21
        `monkeypatch/accelerate/parallelism_config.py` `_patched_dp_shard_cp_dim_names`). Experts are divided among the
        expert axis first, and their parts among the others: as many parts."""
        return self.shard * self.context * self.expert


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Context parallelism: each rank has a part of every row's tokens, and attention exchanges data with the other ranks.

    Attributes:
        heads: the number of ranks that exchange heads for tokens. In attention each has all tokens of a part of the heads
            (Ulysses).
        ring: the number of ranks in a ring, whose queries need each other's keys and values. `heads` x `ring` ranks share a
            row.
        rotation: a ring gathers all keys and values at once (`allgather`), or passes them step by step (`steps`).
        head_tail: a rank of a ring has an early and a late part of each row, so that all ranks have equal work.
        in_collator: rows are divided on the host. Otherwise they are divided on the GPU, which first has whole rows.
    """

    heads: int = 1
    ring: int = 1
    rotation: Literal["allgather", "steps"] = "allgather"
    head_tail: bool = False
    in_collator: bool = True

    @property
    def size(self) -> int:
        """The number of ranks that share a row; 1: rows are not divided."""
        return self.heads * self.ring

    def place_in_ring(self, rank: int) -> int:
        """The position of a rank in its ring. Ranks that exchange heads are neighbours (axolotl 0.21
        `integrations/context_parallel/mesh.py` `RingmasterMesh`).

        Args:
            rank: counted without the axes inside the context axis (experts).
        """
        return rank % self.size // self.heads


@dataclass(frozen=True, kw_only=True, slots=True)
class Fsdp:
    """The settings of FSDP, both versions.

    Attributes:
        wrap: the modules that become units: `transformer` layers, modules above a `size`, or `none`.
        wrap_classes: class names of those layers; empty: those that the model names itself (`_no_split_modules`).
        min_num_params: with `size`: modules with more parameters than this become units.
        reshard_after_forward: parameters are gathered for forward and again for backward; else once for both.
        offload_params: shards, their gradients and the optimizer states stay in host memory.
        pins_offloaded: this host memory is pinned.
        loads_on_host: only rank 0 reads the weights, on the host, and sends them parameter by parameter
            (`cpu_ram_efficient_loading`). With FSDP1 and 4 bits every rank packs each weight on its GPU and keeps the scales
            there; rank 0 keeps the packed weight on the host (transformers 4.48 `_load_state_dict_into_meta_model`).
        stages_packed: rank 0 packs the weights on its GPU, chunk by chunk, keeps them on the host, and sends each rank its
            shard (axolotl's CPU-staged NF4). Then `loads_on_host` is true too.
        syncs_states: FSDP1: rank 0 sends each unit's parameters to the others while the model is wrapped.
        uses_orig_params: FSDP1: the optimizer steps over a view of each parameter's shard, not over whole flat shards.
        saves_whole: rank 0 collects the whole model when it is saved (`FULL_STATE_DICT`); otherwise each rank saves its
            shard.
        saves_states: how checkpoints save the optimizer's states, and the model in parts: `whole` in rank 0's host memory,
            as `parts` in that of each rank, or not at all (empty).
        activation_checkpointing: FSDP's own checkpointing, which wraps layers.
        param_dtype, reduce_dtype, output_dtype: dtypes of mixed precision; empty: as stored.
        sharding_strategy: FSDP1 frees gathered parameters after forward and after backward (`FULL_SHARD`), or only after
            backward (`SHARD_GRAD_OP`).
        prefetch: FSDP1's `backward_prefetch`: `none`, `pre` or `post`.
        adapters: the adapters are part of their `layer`'s unit, are units of their `own`, or are `ignored` by FSDP, so that
            each rank holds them whole.
    """

    wrap: Literal["transformer", "size", "none"] = "transformer"
    wrap_classes: tuple[str, ...] = ()
    min_num_params: int = 0
    reshard_after_forward: bool = True
    offload_params: bool = False
    pins_offloaded: bool = True
    loads_on_host: bool = False
    stages_packed: bool = False
    syncs_states: bool = True
    uses_orig_params: bool = True
    saves_whole: bool = False
    saves_states: Literal["", "whole", "parts"] = ""
    activation_checkpointing: bool = False
    param_dtype: Dtype | Literal[""] = ""
    reduce_dtype: Dtype | Literal[""] = ""
    output_dtype: Dtype | Literal[""] = ""
    sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP"] = "FULL_SHARD"
    prefetch: Literal["none", "pre", "post"] = "none"
    adapters: Literal["layer", "own", "ignored"] = "layer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ddp:
    """The settings of DistributedDataParallel.

    Attributes:
        bucket_cap_mb: `ddp_bucket_cap_mb`; 0: PyTorch's default, 1 MiB for the first bucket and 25 MiB for the others.
        finds_unused: `ddp_find_unused_parameters`.
        broadcasts_buffers: `ddp_broadcast_buffers`.
    """

    bucket_cap_mb: int = 0
    finds_unused: bool = False
    broadcasts_buffers: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Zero:
    """The settings of DeepSpeed (its JSON). A size of -1 means "auto": it depends on the model.

    Attributes:
        stage: 1, 2 or 3; 0: no ZeRO.
        deepspeed: the release whose defaults and order of operations apply.
        reduce_bucket_elements: the size of a bucket in which gradients are reduced.
        prefetch_bucket_elements: ZeRO-3: the number of elements that are prefetched.
        persistence_elements: ZeRO-3: parameters of up to this size are not sharded.
        max_live_elements: ZeRO-3: the largest number of gathered elements.
        max_reuse_elements: ZeRO-3: a gathered parameter is kept if it is used again within this distance.
        sub_group_elements: ZeRO-3: the optimizer steps over this many elements at a time.
        model_persistence_elements: ZeRO-3: the largest number of elements of all parameters that are not sharded.
        overlaps: `overlap_comm`: a second bucket is filled while the first is reduced.
        contiguous_gradients: gradients are copied into the bucket as soon as they are computed.
        reduce_scatter: only owners keep reduced gradients; otherwise all ranks reduce the whole bucket.
        reduces_together: `use_multi_rank_bucket_allreduce`: a bucket is reduced at once, not owner by owner.
        round_robin: `round_robin_gradients`: neighbouring parameters belong to different ranks.
        communication_dtype: the dtype in which gradients are reduced; empty: the model's.
        gradient_clipping: the largest norm; -1: `max_grad_norm`, 0: none.
        checks_overflow: DeepSpeed checks for infinite gradients in bf16 too.
        optimizer: the optimizer that DeepSpeed creates itself; empty: axolotl's is used.
        forces_cpu_optimizer: DeepSpeed's CPU optimizer replaces an offloaded optimizer of axolotl.
        offload_optimizer, offload_params: `cpu`, `nvme` or empty.
        pins_optimizer, pins_params: this host memory is pinned.
        gathers_on_save: `stage3_gather_16bit_weights_on_model_save`.
        source: the origin of the settings: a file's name, the name of one of axolotl's files, or the configuration itself.
    """

    stage: int = 0
    deepspeed: Literal["0.18.9", "0.19.8"] = "0.19.8"
    reduce_bucket_elements: int = 500_000_000
    prefetch_bucket_elements: int = 50_000_000
    persistence_elements: int = 100_000
    max_live_elements: int = 1_000_000_000
    max_reuse_elements: int = 1_000_000_000
    sub_group_elements: int = 1_000_000_000
    model_persistence_elements: int = sys.maxsize
    overlaps: bool = False
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    reduces_together: bool = True
    round_robin: bool = False
    communication_dtype: Dtype | Literal[""] = ""
    gradient_clipping: float = 0.0
    checks_overflow: bool = True
    optimizer: str = ""
    forces_cpu_optimizer: bool = True
    offload_optimizer: Literal["", "cpu", "nvme"] = ""
    offload_params: Literal["", "cpu", "nvme"] = ""
    pins_optimizer: bool = False
    pins_params: bool = False
    gathers_on_save: bool = False
    source: str = ""

    @property
    def checks_elements(self) -> bool:
        """True if the check for infinite gradients needs tensors of one value per element (0.18.9 `_has_inf_or_nan`)."""
        return self.deepspeed == "0.18.9"

    @property
    def always_changes_linear(self) -> bool:
        """True if ZeRO-3's linear layer is used even for models that were not sharded while they were loaded (0.19.8
        `Init.__init__`)."""
        return self.deepspeed != "0.18.9"

    @property
    def keeps_recomputed(self) -> bool:
        """True if frozen weights that a recomputation gathers are kept until the backward of an enclosing module ends
        (0.19.8 `update_recompute_parameters`)."""
        return self.deepspeed != "0.18.9"

    @property
    def casts_buffers(self) -> bool:
        """True if buffers are cast to the model's dtype too (0.18.9 `_configure_distributed_model`)."""
        return self.deepspeed == "0.18.9"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallel:
    """The distribution of a run over GPUs.

    Attributes:
        engine: the engine that distributes the run.
        num_gpus: the number of ranks, which is the number of GPUs on all machines.
        num_nodes: the number of machines. Each has the same number of GPUs.
        count_is_assumed: the number of GPUs was not given: `num_gpus` is the smallest for the configuration.
        context: how the ranks of the mesh's context axis share a row. Its size is also 1 if that is not modelled.
        syncs_each_batch: gradients are reduced after each micro-batch, not only after the last
            (`accelerator_config.gradient_accumulation_kwargs.sync_each_batch`).
    """

    engine: Engine = "none"
    num_gpus: int = 1
    num_nodes: int = 1
    count_is_assumed: bool = False
    mesh: Mesh = Mesh()
    context: Context = Context()
    fsdp: Fsdp = Fsdp()
    ddp: Ddp = Ddp()
    zero: Zero = Zero()
    syncs_each_batch: bool = False


_NAMES = {
    "ddp": "DistributedDataParallel",
    "fsdp1": "FSDP1",
    "fsdp2": "FSDP2",
    "tensor": "tensor parallelism",
    "zero1": "DeepSpeed ZeRO-1",
    "zero2": "DeepSpeed ZeRO-2",
    "zero3": "DeepSpeed ZeRO-3",
}


def engine_name(engine: Engine) -> str:
    """The engine's name for users.

    >>> engine_name("zero3")
    'DeepSpeed ZeRO-3'
    """
    return _NAMES.get(engine, "one GPU")
