"""One storage's life, and the words for it: phases, roles, buckets. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BLOCK_BYTES = 512
"""CUDA's caching allocator hands out multiples of this (`kMinBlockSize`, c10/cuda/CUDACachingAllocator.cpp), and
`torch.cuda.memory_allocated` counts whole blocks."""

Phase = Literal["load", "generate", "score", "forward", "backward", "optimizer", "eval"]
Role = Literal["", "weight", "adapter", "reference", "gradient", "optimizer", "input", "workspace"]
Bucket = Literal["weights", "adapters", "reference", "gradients", "optimizer", "activations", "workspace"]
BUCKETS: tuple[Bucket, ...] = (
    "weights", "adapters", "reference", "gradients", "optimizer", "activations", "workspace",
)  # fmt: skip
Device = Literal["gpu", "cpu", "managed"]

NEVER = 1 << 62
"""`Allocation.died` of a storage that outlived the recording."""


def block_bytes(nbytes: int) -> int:
    """`nbytes` rounded up to whole allocator blocks."""
    return -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """The life of one storage.

    Attributes:
        nbytes: size asked for, before the allocator rounds it.
        born, died: ticks; `died` is `NEVER` for what outlived the recording.
        phase, step: where it was born; step 0 is loading, 1 the first optimizer step.
        module: dotted name of the module whose code ran (`""`: the root, or none).
        op: the operator that made it, as `aten.mm.default`.
        role: what it was registered as; `""` for what merely came out of an operator.
        device: `gpu` (the caching allocator), `cpu` (host memory), `managed` (CUDA managed memory, as paged optimizers
            use).
        recomputed: born while a checkpointed region ran again in backward.
        kept: born in forward and alive when backward began: an activation, in the sense of the word.
        output: the forward of some module returned it (the root's inputs and recomputations do not count).
        stream: the one that it was allocated on; 0 is the stream that compute runs on.
        busy_until: the tick until which another stream worked on it after it was freed (`Tensor.record_stream`); 0: none.
    """

    nbytes: int
    born: int
    died: int = NEVER
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
        """Where the report counts it. The role given at registration wins; then what forward keeps for backward is an
        activation; everything else, recomputed tensors included, is workspace."""
        return _BUCKET_OF_ROLE.get(self.role) or ("activations" if self.kept else "workspace")

    def alive(self, tick: int) -> bool:
        """Whether the storage exists after everything that happens at `tick`."""
        return self.born <= tick < self.died


_BUCKET_OF_ROLE: dict[str, Bucket] = {
    "weight": "weights", "adapter": "adapters", "reference": "reference", "gradient": "gradients",
    "optimizer": "optimizer", "input": "activations", "workspace": "workspace",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A moment of the run: from `tick` on, and until the next mark, this was going on."""

    tick: int
    phase: Phase
    step: int
    micro_batch: int = 0


BEFORE_ALL = Mark(tick=0, phase="load", step=0)
"""What goes on before the first mark."""
