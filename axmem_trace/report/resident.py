"""The maximum of each kind of memory at any time: on the GPU, and elsewhere (`host`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from axmem_trace.ledger import BUCKETS, NEVER, Bucket, Device, Ledger, Role
from axmem_trace.ledger.spans import most_alive
from axmem_trace.model_facts import ModelFacts
from axmem_trace.report.types import Elsewhere, Resident

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def make_resident(facts: ModelFacts, ledger: Ledger) -> Resident:
    """The maxima on the GPU in raw bytes: weights from the model's tensors, all others from the recording."""
    on_gpu, columns = [fact for fact in facts.tensors if fact.device == "gpu"], ledger.columns

    def in_role(role: Role) -> NDArray[np.bool_]:
        return columns.where(lambda kind: kind.device == "gpu" and kind.role == role)

    return Resident(
        weights=sum(fact.nbytes for fact in on_gpu if fact.role == "weight"),
        adapters=sum(fact.nbytes for fact in on_gpu if fact.role == "adapter"),
        reference=int(columns.nbytes[in_role("reference") & (columns.freed_tick == NEVER)].sum()),
        gradients=most_alive(columns, in_role("gradient"))[0],
        optimizer=most_alive(columns, in_role("optimizer"))[0],
    )


def make_elsewhere(ledger: Ledger, device: Device) -> Elsewhere:
    """The maxima in one kind of memory that is not on the GPU."""
    columns = ledger.columns

    def most_in(buckets: Sequence[Bucket]) -> int:
        return most_alive(columns, columns.where(lambda kind: kind.device == device and kind.bucket in buckets))[0]

    return Elsewhere(**{bucket: most_in([bucket]) for bucket in BUCKETS}, peak_bytes=most_in(BUCKETS))
