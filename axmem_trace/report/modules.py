"""The per-module table: each byte belongs to one module, and is in exactly one row."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from axmem_trace.ledger import Allocation, Ledger, sum_by
from axmem_trace.ledger.spans import last_forward_end, most_alive
from axmem_trace.model_facts import ModelFacts
from axmem_trace.report.types import ModuleRow


def make_module_rows(facts: ModelFacts, ledger: Ledger, *, peak_tick: int) -> tuple[ModuleRow, ...]:
    """One row per module of the model, in the model's order; the root (`""`) comes first.

    An allocation belongs to the module that it names, or, if the model has no such module, to the nearest ancestor.
    """
    classes = {"": facts.class_name} | {module.name: module.class_name for module in facts.modules}
    owner = _owner_of(classes)
    columns: dict[str, dict[str, int]] = _count_tensors(facts, owner)

    def raw(allocations: Iterable[Allocation]) -> dict[str, int]:
        return sum_by((owner(each.module), each.nbytes) for each in allocations)

    def blocks(allocations: Iterable[Allocation]) -> dict[str, int]:
        return sum_by((owner(each.module), each.block_bytes) for each in allocations)

    on_gpu = ledger.on_gpu
    start, end = last_forward_end(ledger)
    columns["gradient_bytes"] = raw(most_alive(each for each in on_gpu if each.role == "gradient")[1])
    columns["optimizer_bytes"] = raw(most_alive(each for each in on_gpu if each.role == "optimizer")[1])
    columns["activation_bytes"] = blocks(_activations(on_gpu, peak_tick))
    columns["kept_bytes"] = blocks(_activations(on_gpu, end))
    columns["output_bytes"] = raw(each for each in on_gpu if each.output and start <= each.born <= end)
    return tuple(
        ModuleRow(name=name, class_name=class_name, **{column: sums.get(name, 0) for column, sums in columns.items()})
        for name, class_name in classes.items()
    )


def _activations(allocations: Iterable[Allocation], tick: int) -> Iterable[Allocation]:
    return (each for each in allocations if each.alive(tick) and each.bucket == "activations")


def _count_tensors(facts: ModelFacts, owner: Callable[[str], str]) -> dict[str, dict[str, int]]:
    """Parameters on all devices; weight bytes (with adapters and buffers) only on the GPU."""
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
    """A function from any dotted name to the nearest module that exists."""
    known = {name: name for name in classes}

    def owner(name: str) -> str:
        if name not in known:
            known[name] = owner(name.rpartition(".")[0])
        return known[name]

    return owner
