"""The table of dtypes: parameters and buffers as they are stored on the GPU."""

from __future__ import annotations

from axmem_trace.model_facts import ModelFacts
from axmem_trace.report.types import DtypeRow


def make_dtypes(facts: ModelFacts) -> tuple[DtypeRow, ...]:
    """Parameters and buffers on the GPU. The order is: parameters before buffers, trainable before frozen, large before
    small."""
    sums: dict[tuple[str, str, bool, bool], list[int]] = {}
    for fact in facts.tensors:
        if fact.device == "gpu":
            packed = fact.weights_here > fact.elements
            row = sums.setdefault((fact.kind, fact.dtype, fact.trainable, packed), [0, 0, 0, 0])
            for index, number in enumerate((1, fact.elements, fact.nbytes, fact.weights_here)):
                row[index] += number
    rows = [
        DtypeRow(
            kind="parameter" if kind == "parameter" else "buffer",
            dtype=dtype,
            trainable=trainable,
            tensors=tensors,
            elements=elements,
            bytes=nbytes,
            logical_elements=logical,
        )
        for (kind, dtype, trainable, _), (tensors, elements, nbytes, logical) in sums.items()
    ]
    return tuple(sorted(rows, key=lambda row: (row.kind == "buffer", not row.trainable, -row.bytes, row.dtype)))
