"""`Allocation`: one storage, from its allocation until it is freed. Phases, roles and buckets. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ON_EACH_RANK = "on each rank"
"""In `Allocation.op`, before the operator: host memory that each rank needs when the model is saved, not only rank 0."""
BLOCK_BYTES = 512
"""CUDA's caching allocator allocates multiples of this (`kMinBlockSize`, c10/cuda/CUDACachingAllocator.cpp), and
`torch.cuda.memory_allocated` counts whole blocks."""

Phase = Literal["load", "generate", "score", "forward", "backward", "optimizer", "eval", "save"]
Role = Literal[
    "", "weight", "adapter", "reference", "gradient", "optimizer", "input", "workspace", "gathered", "buckets"
]
Bucket = Literal["weights", "adapters", "reference", "gradients", "optimizer", "activations", "workspace"]
BUCKETS: tuple[Bucket, ...] = get_args(Bucket)
Device = Literal["gpu", "cpu", "managed"]

NEVER = 1 << 62
"""`Allocation.freed_tick` of a storage that was never freed in the recording."""


def block_bytes(nbytes: int) -> int:
    """`nbytes` rounded up to whole allocator blocks."""
    return -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """One storage, from its allocation until it is freed.

    Attributes:
        nbytes: requested size, before the allocator rounds it.
        allocated_tick, freed_tick: when it was allocated and freed; `freed_tick` is `NEVER` if it was not freed.
        phase, step: those in which it was allocated; step 0 is loading, step 1 is the first optimizer step.
        module: dotted name of the module that was running (`""`: the root, or none).
        op: the operator that allocated it, such as `aten.mm.default`.
        role: the role with which it was registered; `""` for other results of operators. With several GPUs, `gathered`
            are the full parameters after an all-gather, and `buckets` are DDP's buckets.
        device: `gpu` (the caching allocator), `cpu` (host memory), `managed` (CUDA managed memory, which paged
            optimizers use).
        recomputed: whether it was allocated while a checkpointed region ran again in backward.
        kept: whether it was allocated in forward and still alive when backward began: an activation in the strict
            sense.
        output: whether the forward of a module returned it (the root's inputs and recomputations do not count).
        stream: the stream on which it was allocated; 0 is the compute stream.
        busy_until: the tick until which another stream used it after it was freed (`Tensor.record_stream`); 0: none.
    """

    nbytes: int
    allocated_tick: int
    freed_tick: int = NEVER
    phase: Phase = "forward"
    step: int = 1
    module: str = ""
    op: str = ""
    role: Role = ""
    device: Device = "gpu"
    recomputed: bool = False
    kept: bool = False
    output: bool = False
    stream: int = 0
    busy_until: int = 0

    @property
    def block_bytes(self) -> int:
        """Bytes that `torch.cuda.memory_allocated` counts for it."""
        return block_bytes(self.nbytes)

    @property
    def bucket(self) -> Bucket:
        """The bucket of the report in which it counts: the bucket of its role; without a role, activations if forward
        keeps it for backward, else workspace. Workspace includes recomputed tensors."""
        return _BUCKET_OF_ROLE.get(self.role) or ("activations" if self.kept else "workspace")

    def alive(self, tick: int) -> bool:
        """Whether the storage is allocated after all events of `tick`."""
        return self.allocated_tick <= tick < self.freed_tick


_BUCKET_OF_ROLE: dict[str, Bucket] = {
    "weight": "weights",
    "adapter": "adapters",
    "reference": "reference",
    "gradient": "gradients",
    "optimizer": "optimizer",
    "input": "activations",
    "workspace": "workspace",
    "gathered": "workspace",
    "buckets": "workspace",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A point of the run: this phase begins at `tick` and lasts until the next mark."""

    tick: int
    phase: Phase
    step: int
    micro_batch: int = 0


BEFORE_ALL = Mark(tick=0, phase="load", step=0)
"""The phase before the first mark."""
