"""The parts of a report: numbers and short texts, frozen. All sizes are bytes, as integers.

There are two ways of counting, and every field says which one it uses:

- *blocks*: full allocator blocks (512 bytes), as `torch.cuda.memory_allocated` counts. Peaks, phases and buckets.
- *raw*: the bytes of the tensors themselves, as an independent count of parameters gives them. `resident`, `host`,
  `dtypes` and the weights, gradients and optimizer columns of `modules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from axmem_trace.report.run_types import json_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """Blocks alive at one time, by purpose. They add up to the allocated bytes at that time."""

    weights: int = 0
    adapters: int = 0
    reference: int = 0
    """A second model, which does not train."""
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
    """The largest number of raw bytes of each on the GPU; they need not be alive at the same time.

    Weights and adapters are those of all parameters and buffers (`dtypes` adds up to their sum). The reference is what a
    second model holds in training. Gradients and optimizer are the most raw bytes of that role that were alive at one
    time: an optimizer that frees each gradient directly never holds all of them.
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
    """Raw bytes outside the GPU's caching allocator: the maximum of each bucket, and of all together at one time."""

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
    """Memory outside the card: `cpu` is host memory, `managed` is CUDA managed memory (paged optimizers), which
    `memory_allocated` never counts and which moves between host and card."""

    cpu: Elsewhere = Elsewhere()
    managed: Elsewhere = Elsewhere()


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The point with the most live bytes (blocks), and what the card needs.

    `active_bytes` is `counted_bytes` plus the blocks that wait for another stream: none on a single GPU, where a step
    uses one stream. `counted_bytes` is what `torch.cuda.max_memory_allocated` would return. With expandable segments
    (axolotl's default) it equals the live bytes; without, PyTorch also counts rests of up to 1 MiB that stay with a
    large block, and what `roundup_power2_divisions` adds. `reserved_bytes` is the maximum that the caching allocator
    holds at any time. `device_bytes` is reserved plus the CUDA context and NCCL's buffers, as `nvidia-smi` shows it;
    both are assumed.

    Attributes:
        active_bytes: with blocks that wait for another stream.
        counted_bytes: what axolotl logs as `memory/max_allocated`.
        reserved_bytes: what axolotl logs as `memory/device_reserved`.
        device_bytes: what `nvidia-smi` shows, and what must fit.
        nccl_bytes: NCCL's memory for exchanges among GPUs; 0 on one.
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
    """A use of memory at the peak, by a name that a user knows (`logits and loss`), in blocks. All add up to the peak.

    Attributes:
        name: such as `logits and loss`, `layer weights`, `optimizer states`.
        bytes: full blocks.
    """

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AfterLoad:
    """Blocks alive after the model is loaded, before anything else happens."""

    allocated_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseUse:
    """One phase of the run: its most live bytes (blocks), the allocator's peak, and the bytes at its end.

    `module`, `op` and `buckets` belong to the point with the most live bytes. `phases` are the parts of a step
    (`forward`, `backward`, `optimizer`), all micro-batches together; a part has no parts.

    Attributes:
        phases: parts by name.
    """

    allocated_bytes: int
    reserved_bytes: int
    end_bytes: int
    """Blocks alive when it ended."""
    active_bytes: int = 0
    """The maximum of `counted_bytes` plus the blocks that wait for another stream."""
    counted_bytes: int = 0
    counted_end_bytes: int = 0
    """What `torch.cuda.max_memory_allocated` and `memory_allocated` would return: see `Peak.counted_bytes`."""
    module: str = ""
    op: str = ""
    buckets: Buckets = Buckets()
    phases: Mapping[str, PhaseUse] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleRow:
    """One module's own share: nothing is in two rows, so each column adds up to a total.

    `weight_bytes` (raw) to resident weights + adapters, `gradient_bytes` and `optimizer_bytes` (raw) to their resident
    totals, `activation_bytes` (blocks) to the activations bucket at the peak. `kept_bytes` (blocks) is what was kept
    for backward when the last forward of the last step had ended. `output_bytes` (raw) is what the module's own code
    allocated in that forward and a module returned.

    Attributes:
        name: dotted; empty for the root.
        class_name: of the module.
        parameters, trainable_parameters: numbers of weights.
        weight_bytes, gradient_bytes, optimizer_bytes: raw bytes, in full.
        activation_bytes: blocks alive at the peak.
        kept_bytes: blocks kept for backward when the last forward had ended.
        output_bytes: raw bytes that forward returned.
        sharded_bytes: those of `weight_bytes` that are this rank's part; each rank holds the others. 0 on one GPU.
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
        """Weights, gradients, optimizer state and activations at the peak: what the row is sorted by."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class DtypeRow:
    """Parameters or buffers on the GPU of one dtype. Raw bytes; all rows add up to resident weights + adapters.

    Attributes:
        kind: parameters or buffers.
        dtype: as stored.
        trainable: whether they train.
        tensors, elements: how many, as stored.
        bytes: raw.
    """

    kind: Literal["parameter", "buffer"]
    dtype: str
    trainable: bool
    tensors: int
    elements: int
    bytes: int
    logical_elements: int = 0
    """Weights that the elements represent: twice as many for 4-bit weights packed into bytes; 0 for buffers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelinePoint:
    """Live and reserved bytes at one tick, and what was allocated or freed at it."""

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
    """It frees weights and key-value cache while the trainer trains."""
    free_at_start_bytes: int
    """Free bytes of the card when it starts, after the models are loaded."""
    starts: bool
    """True if its share is free then; otherwise vLLM stops with an error."""
    together_bytes: int
    """The most bytes that trainer and engine hold at one time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfMemory:
    """The first request for which the card has not enough memory, even after cached blocks were freed."""

    tick: int
    requested_bytes: int
    phase: str
    step: int
    module: str = ""
    op: str = ""
    holder: str = ""
    """The purpose of the request: the name of a `Holder`."""
