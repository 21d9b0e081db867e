"""The table of modules: each byte belongs to one module, and is in exactly one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from axmem_trace.ledger import Ledger, sum_by
from axmem_trace.ledger.spans import last_forward_end, most_alive
from axmem_trace.model_facts import ModelFacts
from axmem_trace.report.types import ModuleRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def make_module_rows(facts: ModelFacts, ledger: Ledger, *, peak_tick: int) -> tuple[ModuleRow, ...]:
    """One row for each module, in the model's order; the root (`""`) is the first.

    An allocation belongs to the module that it names. If the model has no such module, it belongs to the nearest
    ancestor.
    """
    classes = {"": facts.class_name} | {module.name: module.class_name for module in facts.modules}
    owner = _owner_of(classes)
    columns: dict[str, dict[str, int]] = _count_tensors(facts, owner)

    ledger_columns = ledger.columns
    start, end = last_forward_end(ledger)

    def sum_at(indices: NDArray[np.intp], sizes: NDArray[np.int64]) -> dict[str, int]:
        sums = ledger_columns.sum_by_module(indices, sizes)
        return sum_by((owner(module), nbytes) for module, nbytes in sums.items())

    def alive_activations(tick: int) -> dict[str, int]:
        alive = is_activation & ledger_columns.alive(tick)
        return sum_at(alive.nonzero()[0], ledger_columns.block_bytes)

    is_activation = ledger_columns.where(lambda kind: kind.device == "gpu" and kind.bucket == "activations")
    for role in ("gradient", "optimizer"):
        chosen = ledger_columns.where(lambda kind, role=role: kind.device == "gpu" and kind.role == role)  # type: ignore[misc]
        columns[f"{role}_bytes"] = sum_at(most_alive(ledger_columns, chosen)[1], ledger_columns.nbytes)
    columns["activation_bytes"] = alive_activations(peak_tick)
    columns["kept_bytes"] = alive_activations(end)
    outputs = ledger_columns.where(lambda kind: kind.device == "gpu" and kind.output)
    outputs &= (start <= ledger_columns.allocated_tick) & (ledger_columns.allocated_tick <= end)
    columns["output_bytes"] = sum_at(outputs.nonzero()[0], ledger_columns.nbytes)
    return tuple(
        ModuleRow(name=name, class_name=class_name, **{column: sums.get(name, 0) for column, sums in columns.items()})
        for name, class_name in classes.items()
    )


def _count_tensors(facts: ModelFacts, owner: Callable[[str], str]) -> dict[str, dict[str, int]]:
    """Sums by module. Parameters are counted on all devices, weight bytes (with adapters and buffers) only on the
    GPU."""
    parameters = [fact for fact in facts.tensors if fact.kind == "parameter"]
    trainable = [fact for fact in parameters if fact.trainable]
    on_gpu = [fact for fact in facts.tensors if fact.device == "gpu"]
    return {
        "parameters": sum_by((owner(fact.module), fact.logical_elements) for fact in facts.tensors),
        "trainable_parameters": sum_by((owner(fact.module), fact.logical_elements) for fact in trainable),
        "weight_bytes": sum_by((owner(fact.module), fact.nbytes) for fact in on_gpu),
        "sharded_bytes": sum_by((owner(fact.module), fact.nbytes) for fact in on_gpu if fact.division == "sharded"),
    }


def _owner_of(classes: dict[str, str]) -> Callable[[str], str]:
    """A function that returns the nearest existing module for any dotted name."""
    known = {name: name for name in classes}

    def owner(name: str) -> str:
        if name not in known:
            known[name] = owner(name.rpartition(".")[0])
        return known[name]

    return owner
