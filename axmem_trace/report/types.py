"""The parts of a report: numbers and short texts, frozen. All sizes are bytes, as integers.

There are two ways to count, and every field says which one it uses:

- *blocks*: full allocator blocks (512 bytes), as `torch.cuda.memory_allocated` counts. Peaks, phases and buckets.
- *raw*: the bytes of the tensors themselves, the same as in an independent count of parameters. `resident`, `host`,
  `dtypes` and the weights, gradients and optimizer columns of `modules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from axmem_trace.report.run_types import json_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """Blocks alive at one time, by purpose. Their sum is the allocated bytes at that time."""

    weights: int = 0
    adapters: int = 0
    reference: int = 0
    """A second model, which is not trained."""
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        """The sum of all buckets."""
        return sum(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """The largest number of raw bytes of each kind on the GPU. The kinds need not reach it at the same time.

    Weights and adapters are the bytes of all parameters and buffers; the sum of `dtypes` is the sum of these two. The
    reference is a second model in training. Gradients and optimizer are the most raw bytes of that role that are alive
    at the same time: if an optimizer frees each gradient directly, they are never all alive.
    """

    weights: int = 0
    adapters: int = 0
    reference: int = 0
    gradients: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """The sum of all five."""
        return self.weights + self.adapters + self.reference + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Elsewhere:
    """Raw bytes outside the GPU's caching allocator: the maximum of each bucket, and the maximum of all together at one
    time."""

    weights: int = 0
    adapters: int = 0
    reference: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    workspace: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """Memory outside the card: `cpu` is host memory, `managed` is CUDA managed memory (paged optimizers). Managed
    memory moves between host and card, and `memory_allocated` never counts it."""

    cpu: Elsewhere = Elsewhere()
    managed: Elsewhere = Elsewhere()


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The moment with the most live bytes (blocks), and the memory that the card must have.

    `active_bytes` is `counted_bytes` plus the blocks that wait for another stream. On a single GPU there are none,
    because a step uses one stream. `counted_bytes` is the value of `torch.cuda.max_memory_allocated`. With expandable
    segments (axolotl's default) it equals the live bytes. Without them, PyTorch also counts rests of up to 1 MiB in
    large blocks, and the bytes that `roundup_power2_divisions` adds. `reserved_bytes` is the largest memory that the
    caching allocator reserves at any time. `device_bytes` is the reserved memory plus the CUDA context and NCCL's
    buffers, as `nvidia-smi` shows it; the latter two are assumed.

    Attributes:
        active_bytes: the counted bytes and the blocks that wait for another stream.
        counted_bytes: axolotl logs it as `memory/max_allocated`.
        reserved_bytes: axolotl logs it as `memory/device_reserved`.
        device_bytes: `nvidia-smi` shows it; the card must have this memory.
        nccl_bytes: NCCL's memory for communication between GPUs; 0 on one GPU.
    """

    allocated_bytes: int
    active_bytes: int
    counted_bytes: int
    reserved_bytes: int
    device_bytes: int
    context_bytes: int
    nccl_bytes: int = 0
    phase: str
    step: int
    module: str
    op: str
    tick: int
    holder: str = ""
    """The purpose of the last allocation before the peak: the name of a `Holder`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A use of memory at the peak, with a name that a user knows (`logits and loss`), in blocks. The sum of all is the
    peak.

    Attributes:
        name: `logits and loss`, `layer weights`, `optimizer states`, ...
        bytes: full blocks.
    """

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AfterLoad:
    """Blocks that are alive directly after the model is loaded."""

    allocated_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseUse:
    """One phase of the run: its largest number of live bytes (blocks), the allocator's peak, and the bytes at its end.

    `module`, `op` and `buckets` are those of the moment with the most live bytes. `phases` are the parts of a step
    (`forward`, `backward`, `optimizer`), with all micro-batches together. A part has no parts.

    Attributes:
        phases: the parts of a step by name.
    """

    allocated_bytes: int
    reserved_bytes: int
    end_bytes: int
    """Blocks that are alive at its end."""
    active_bytes: int = 0
    """The maximum of `counted_bytes` plus the blocks that wait for another stream."""
    counted_bytes: int = 0
    counted_end_bytes: int = 0
    """The values of `torch.cuda.max_memory_allocated` and `memory_allocated`: see `Peak.counted_bytes`."""
    module: str = ""
    op: str = ""
    buckets: Buckets = Buckets()
    phases: Mapping[str, PhaseUse] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleRow:
    """One module without its submodules. Nothing is in two rows, so each column has a total.

    The total of `weight_bytes` (raw) is resident weights + adapters. The totals of `gradient_bytes` and
    `optimizer_bytes` (raw) are the resident gradients and optimizer. The total of `activation_bytes` (blocks) is the
    activations bucket at the peak. `kept_bytes` (blocks) is kept for backward when the last forward of the last step
    has ended. `output_bytes` (raw) are tensors that the module's own code allocated in that forward, and that a module
    returned.

    Attributes:
        name: dotted name; empty for the root.
        class_name: the module's class.
        parameters, trainable_parameters: numbers of weights.
        weight_bytes, gradient_bytes, optimizer_bytes: raw bytes.
        activation_bytes: blocks that are alive at the peak.
        kept_bytes: blocks that are kept for backward when the last forward has ended.
        output_bytes: raw bytes that forward returned.
        sharded_bytes: the part of `weight_bytes` that is this rank's shard; each rank has the rest in full. 0 on one
            GPU.
    """

    name: str
    class_name: str = json_name("class")
    parameters: int = 0
    trainable_parameters: int = 0
    weight_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    activation_bytes: int = 0
    kept_bytes: int = 0
    output_bytes: int = 0
    sharded_bytes: int = 0
    num_modules: int = 1
    """How many modules were merged into this row, including itself."""

    @property
    def held_bytes(self) -> int:
        """The sum of weights, gradients, optimizer states and activations at the peak; rows are sorted by it."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class DtypeRow:
    """Parameters or buffers of one dtype on the GPU, in raw bytes. The sum of all rows is resident weights + adapters.

    Attributes:
        kind: parameters or buffers.
        dtype: the dtype in which they are stored.
        trainable: whether they are trained.
        tensors, elements: the number of tensors, and of stored elements.
        bytes: raw bytes.
    """

    kind: Literal["parameter", "buffer"]
    dtype: str
    trainable: bool
    tensors: int
    elements: int
    bytes: int
    logical_elements: int = 0
    """The number of weights that the elements represent: twice as many for 4-bit weights packed into bytes; 0 for
    buffers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelinePoint:
    """Live and reserved bytes at one tick, and the allocation or free of this tick."""

    tick: int
    allocated_bytes: int
    reserved_bytes: int
    phase: str
    step: int
    module: str
    op: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """An inference engine in the trainer's process, which uses a share of the card in addition to all other figures."""

    name: str
    """The software: `vLLM`."""
    share: float
    """The share of the card that it may use."""
    bytes: int
    """That share; none of it is in `peak`."""
    sleeps: bool
    """Whether it frees weights and key-value cache while the trainer trains."""
    free_at_start_bytes: int
    """Free bytes of the card when the engine starts, after the models are loaded."""
    starts: bool
    """Whether its share is free at that time; if not, vLLM stops with an error."""
    together_bytes: int
    """The most bytes of trainer and engine together at one time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfMemory:
    """The first request for which the card does not have enough memory, even after cached blocks were freed."""

    tick: int
    requested_bytes: int
    phase: str
    step: int
    module: str = ""
    op: str = ""
    holder: str = ""
    """The purpose of the request: the name of a `Holder`."""
