"""How a run is distributed over GPUs: how many, their mesh, and what the engine shards."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from axmem_trace.recipe.model import Dtype

Engine = Literal["none", "ddp", "fsdp1", "fsdp2", "tensor", "zero1", "zero2", "zero3"]
"""What distributes the run: nothing (one GPU), PyTorch's DistributedDataParallel, its two FSDPs, transformers' tensor
parallelism (with its own FSDP2, if there are more ranks), or DeepSpeed's ZeRO."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """The mesh of the ranks; the product of the sizes is their number.

    Attributes:
        replicate: groups of ranks that each hold a whole copy of the shards (`dp_replicate_size`).
        shard: ranks among which FSDP or ZeRO divides the parameters (`dp_shard_size`).
        context: ranks that share one row's tokens (`context_parallel_size`).
        expert: ranks among which experts are divided (`expert_parallel_size`).
        tensor: ranks among which layers are divided (`tensor_parallel_size`).
    """

    replicate: int = 1
    shard: int = 1
    context: int = 1
    expert: int = 1
    tensor: int = 1

    @property
    def num_ranks(self) -> int:
        """All of them."""
        return self.replicate * self.shard * self.context * self.expert * self.tensor

    @property
    def num_shards(self) -> int:
        """Parts that FSDP divides a parameter into: axolotl shards over the context axis too (accelerate
        `parallelism_config.py` `fsdp_dim_names`: `dp_shard_cp`)."""
        return self.shard * self.context


@dataclass(frozen=True, kw_only=True, slots=True)
class Fsdp:
    """The settings of FSDP, both versions.

    Attributes:
        wrap: which modules are units: `transformer` layers, modules of at least some `size`, or nothing.
        wrap_classes: class names of those layers; empty: what the model names itself (`_no_split_modules`).
        min_num_params: with `size`: modules with more parameters than this.
        reshard_after_forward: parameters are gathered for forward and again for backward; else once for both.
        offload_params: shards, their gradients and the optimizer wait in host memory.
        pins_offloaded: that host memory is pinned.
        loads_on_host: only rank 0 reads the weights, on the host, and sends them parameter by parameter
            (`cpu_ram_efficient_loading`). With FSDP1 and 4 bits every rank packs each weight on its GPU, keeps the scales
            there, and rank 0 keeps the packed weight on the host (transformers 4.48 `_load_state_dict_into_meta_model`).
        stages_packed: rank 0 packs the weights on its GPU, chunk by chunk, keeps them on the host, and sends each rank its
            part (axolotl's CPU-staged NF4); also `loads_on_host`.
        syncs_states: FSDP1: rank 0 sends each unit's parameters to the others while the model is wrapped.
        uses_orig_params: FSDP1: the optimizer steps over a view of each parameter's part, not over whole flat shards.
        saves_whole: rank 0 collects the whole model when it is saved (`FULL_STATE_DICT`); otherwise each rank saves its
            part.
        activation_checkpointing: FSDP's own, by wrapping layers.
        param_dtype, reduce_dtype, output_dtype: of mixed precision; empty: as stored.
        sharding_strategy: FSDP1's: `FULL_SHARD` (after forward and backward), `SHARD_GRAD_OP` (after backward).
        prefetch: FSDP1's `backward_prefetch`: `none`, `pre` or `post`.
        adapters: they belong to the unit of their `layer`, are units of their `own`, or are `ignored`: each rank holds
            them whole.
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
        bucket_cap_mb: `ddp_bucket_cap_mb`; 0: PyTorch's own, 1 MiB for the first bucket and 25 MiB for the others.
        finds_unused: `ddp_find_unused_parameters`.
        broadcasts_buffers: `ddp_broadcast_buffers`.
    """

    bucket_cap_mb: int = 0
    finds_unused: bool = False
    broadcasts_buffers: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Zero:
    """The settings of DeepSpeed (its JSON). Sizes of -1 are "auto": they follow the model.

    Attributes:
        stage: 1, 2 or 3.
        deepspeed: the release whose defaults and order of operations apply.
        reduce_bucket_elements: gradients are reduced so many at a time.
        prefetch_bucket_elements, persistence_elements: ZeRO-3: parameters fetched ahead, and those that stay whole.
        max_live_elements, max_reuse_elements: ZeRO-3: gathered parameters kept, and the distance at which they stay.
        sub_group_elements: ZeRO-3: the optimizer steps over so many at a time.
        model_persistence_elements: ZeRO-3: the most elements of all parameters that stay whole.
        overlaps: `overlap_comm`: a second bucket is filled while the first is reduced.
        contiguous_gradients: gradients are copied into the bucket as they come.
        reduce_scatter: only owners keep reduced gradients; otherwise all ranks reduce the whole bucket.
        reduces_together: `use_multi_rank_bucket_allreduce`: a bucket is reduced at once, not owner by owner.
        round_robin: `round_robin_gradients`: neighbouring parameters belong to different ranks.
        communication_dtype: gradients are reduced in it; empty: in the model's.
        gradient_clipping: the largest norm; -1: `max_grad_norm`, 0: none.
        checks_overflow: DeepSpeed looks for infinite gradients in bf16 too.
        optimizer: DeepSpeed makes this one itself; empty: axolotl's is used.
        forces_cpu_optimizer: an offloaded optimizer of axolotl is replaced by DeepSpeed's for the CPU.
        offload_optimizer, offload_params: `cpu`, `nvme` or empty.
        pins_optimizer, pins_params: that host memory is pinned.
        gathers_on_save: `stage3_gather_16bit_weights_on_model_save`.
        source: where the settings are from: a file's name, the name of a stock file, or the configuration itself.
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
        """Infinite gradients are looked for element by element (0.18.9 `_has_inf_or_nan`)."""
        return self.deepspeed == "0.18.9"

    @property
    def always_changes_linear(self) -> bool:
        """ZeRO-3's linear layer is used for models too that were not divided while they were loaded (0.19.8
        `Init.__init__`)."""
        return self.deepspeed != "0.18.9"

    @property
    def keeps_recomputed(self) -> bool:
        """Frozen weights that a recomputation gathers are kept until the backward of a module around it ends (0.19.8
        `update_recompute_parameters`)."""
        return self.deepspeed != "0.18.9"

    @property
    def casts_buffers(self) -> bool:
        """Buffers take the model's dtype too (0.18.9 `_configure_distributed_model`)."""
        return self.deepspeed == "0.18.9"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallel:
    """The distribution of a run over GPUs.

    Attributes:
        engine: what distributes the run.
        num_gpus: ranks, one to a GPU.
        num_nodes: machines that hold them, as many on each.
        count_is_assumed: the number of GPUs was not given: `num_gpus` is the smallest for the configuration.
        syncs_each_batch: gradients are reduced after each micro-batch, not only after the last
            (`accelerator_config.gradient_accumulation_kwargs.sync_each_batch`).
    """

    engine: Engine = "none"
    num_gpus: int = 1
    num_nodes: int = 1
    count_is_assumed: bool = False
    mesh: Mesh = Mesh()
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
