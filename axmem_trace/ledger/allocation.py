"""`Allocation`, one storage from its allocation until it is freed; phases, roles, buckets. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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
"""`Allocation.freed_tick` of a storage that outlived the recording."""


def block_bytes(nbytes: int) -> int:
    """`nbytes` rounded up to whole allocator blocks."""
    return -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """The life of one storage.

    Attributes:
        nbytes: requested size, before the allocator rounds it.
        allocated_tick, freed_tick: when it was allocated and freed; `freed_tick` is `NEVER` if it outlived the recording.
        phase, step: when it was allocated; step 0 is loading, 1 the first optimizer step.
        module: dotted name of the module whose code ran (`""`: the root, or none).
        op: the operator that made it, as `aten.mm.default`.
        role: what it was registered as; `""` for other results of operators. Among several GPUs, `gathered` are parameters
            that a rank has whole for a while, and `buckets` those of DDP.
        device: `gpu` (the caching allocator), `cpu` (host memory), `managed` (CUDA managed memory, as paged optimizers
            use).
        recomputed: allocated while a checkpointed region ran again in backward.
        kept: allocated in forward and alive when backward began: an activation in the strict sense.
        output: the forward of some module returned it (the root's inputs and recomputations do not count).
        stream: the one that it was allocated on; 0 is the stream that compute runs on.
        busy_until: the tick until which another stream worked on it after it was freed (`Tensor.record_stream`); 0: none.
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
        """The part of the report in which it counts: that of its role; else activations, if forward keeps it for backward;
        else workspace, which includes recomputed tensors."""
        return _BUCKET_OF_ROLE.get(self.role) or ("activations" if self.kept else "workspace")

    def alive(self, tick: int) -> bool:
        """Whether the storage exists after everything that happens at `tick`."""
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
