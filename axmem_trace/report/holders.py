"""The uses of memory at the peak, by names that a user knows: logits and loss, layer weights, optimizer states, ...

Each allocation that is alive at the peak belongs to one name, so the sum of the holders is the allocated peak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.ledger.columns import Columns
from axmem_trace.model_facts import ModelFacts
from axmem_trace.report.types import Holder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOGITS = "logits and loss"
LAYER_INPUTS = "inputs of the layers, kept for backward"
IN_LAYERS = "activations inside the layers"
LAYER_WEIGHTS = "layer weights"
OPTIMIZER_STATES = "optimizer states"
_HEADS = ("lm_head", "embed_out", "output_projection", "score", "classifier")
"""Names of output layers in transformers' models."""
_BY_BUCKET = {
    "adapters": "adapter weights",
    "reference": "reference model's weights",
    "gradients": "gradients",
    "optimizer": OPTIMIZER_STATES,
}
_BY_ROLE = {"gathered": "gathered parameters", "buckets": "DDP's buckets of gradients"}
_FROZEN = (("reward_model", "reward model's weights"), ("feature_network", "feature network's weights"))
"""Models other than the reference that only compute scores, by the beginning of their modules' names."""
_PHASES = {"eval": "evaluation", "generate": "generation", "score": "scoring", "save": "saving"}
_BY_OPERATOR = (
    ("cublas", "cuBLAS workspace"),
    ("all_gather", "gathered parameters"),
    ("reduce_scatter", "gradients being reduced"),
    ("all_reduce", "gradients being reduced"),
    ("dequant", "dequantised weights"),
)
"""Parts of an operator's name that show the purpose of a temporary tensor."""


class _Module(NamedTuple):
    """Facts about the allocations in a module that follow from its name."""

    frozen: str
    """The holder of the weights, if they belong to a model that is not the trained one."""
    weights: str
    activations: str
    has_logits: bool
    """Whether it is the output layer, or a module around it whose own code is the loss."""


class HolderNames:
    """Finds the holder (the purpose) of each allocation of a model."""

    def __init__(self, facts: ModelFacts) -> None:
        self._head = next((each.name for each in facts.modules if each.name.rpartition(".")[2] in _HEADS), "")
        """The name of the output layer; empty if no module has a known name."""
        self._wrappers = frozenset({"", *_ancestors(self._head)})
        """The modules around it."""
        self._embeddings = tuple(
            each.name for each in facts.modules if "Embedding" in each.class_name and "Rotary" not in each.class_name
        )
        weights: defaultdict[str, int] = defaultdict(int)
        for fact in facts.tensors:
            weights[fact.module] += fact.nbytes
        stacks: defaultdict[str, int] = defaultdict(int)
        for module, nbytes in weights.items():
            stacks[_stack_of(module)] += nbytes
        stacks.pop("", None)
        self._stack = max(stacks, key=lambda name: stacks[name], default="")
        """The numbered list with the most weights: `model.layers`."""
        self._modules: dict[str, _Module] = {}

    def of(self, allocation: Allocation) -> str:
        """The purpose of one allocation."""
        return _name(allocation, self._describe(allocation.module))

    def of_all(self, columns: Columns) -> tuple[list[str], NDArray[np.intp]]:
        """The names, and the position of each allocation's name among them."""
        import numpy as np

        described = [self._describe(module) for module in columns.modules]
        modules = {module: code for code, module in enumerate(dict.fromkeys(described))}
        names: dict[str, int] = {}
        table = [[names.setdefault(_name(kind, module), len(names)) for module in modules] for kind in columns.kinds]
        codes = np.array([modules[module] for module in described], dtype=np.intp)
        found: NDArray[np.intp] = np.array(table, dtype=np.intp).reshape(len(columns.kinds), len(modules))[
            columns.kind, codes[columns.module]
        ]
        return list(names), found

    def list_alive(self, ledger: Ledger, tick: int) -> tuple[Holder, ...]:
        """Blocks that are alive at a tick, summed by holder, the largest first. Of equal holders, the one that was
        allocated first."""
        import numpy as np

        columns = ledger.columns
        alive = np.flatnonzero(columns.alive(tick) & columns.where(lambda kind: kind.device == "gpu"))
        names, codes = self.of_all(columns)
        sums = np.zeros(len(names), dtype=np.int64)
        np.add.at(sums, codes[alive], columns.block_bytes[alive])
        found, first = np.unique(codes[alive], return_index=True)
        ranked = sorted(zip(first.tolist(), found.tolist(), strict=True), key=lambda pair: (-sums[pair[1]], pair[0]))
        return tuple(Holder(name=names[code], bytes=int(sums[code])) for _, code in ranked)

    def _describe(self, name: str) -> _Module:
        found = self._modules.get(name)
        if found is None:
            layer = _layer_of(name)
            found = self._modules[name] = _Module(
                frozen=next((holder for start, holder in _FROZEN if name.startswith(start)), _BY_BUCKET["reference"]),
                weights=self._name_weights(name, layer.rpartition(".")[0]),
                activations=LAYER_INPUTS if layer and name == layer else IN_LAYERS if layer else "other activations",
                has_logits=self._is_in_head(name) or name in self._wrappers,
            )
        return found

    def _is_in_head(self, name: str) -> bool:
        return bool(self._head) and (name == self._head or name.startswith(f"{self._head}."))

    def _name_weights(self, name: str, stack: str) -> str:
        if stack:
            return LAYER_WEIGHTS if stack == self._stack else f"weights of {stack.removeprefix('base_model.model.')}"
        if self._is_in_head(name):
            return "output layer's weights"
        if any(name == each or name.startswith(f"{each}.") for each in self._embeddings):
            return "embedding weights"
        return "other weights"


def bucket_of_holder(name: str) -> str:
    """The bucket of a holder's bytes, for its colour.

    >>> bucket_of_holder("layer weights"), bucket_of_holder("logits and loss"), bucket_of_holder("cuBLAS workspace")
    ('weights', 'activations', 'workspace')
    """
    named = {holder: bucket for bucket, holder in _BY_BUCKET.items()}
    if name in named:
        return named[name]
    if name in (LOGITS, LAYER_INPUTS, IN_LAYERS, "other activations"):
        return "activations"
    return "weights" if "weights" in name and name != "dequantised weights" else "workspace"


def _ancestors(module: str) -> Iterable[str]:
    parts = module.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def _layer_of(module: str) -> str:
    """The module's name up to its first number: `model.layers.3` of `model.layers.3.mlp`; empty without a number."""
    parts = module.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def _stack_of(module: str) -> str:
    return _layer_of(module).rpartition(".")[0]


def _name(allocation: Allocation, module: _Module) -> str:
    """The purpose of an allocation in this module. Only attributes of the allocation's kind are used."""
    bucket = allocation.bucket
    if bucket == "reference":
        return module.frozen
    if bucket in _BY_BUCKET:
        return _BY_BUCKET[bucket]
    if bucket == "weights":
        return module.weights
    if allocation.role == "" and module.has_logits and allocation.phase not in ("load", "optimizer"):
        return LOGITS
    if bucket == "activations":
        return module.activations
    return _name_workspace(allocation)


def _name_workspace(allocation: Allocation) -> str:
    if allocation.role in _BY_ROLE:
        return _BY_ROLE[allocation.role]
    operator = allocation.op.lower()
    for word, name in _BY_OPERATOR:
        if word in operator:
            return name
    if allocation.recomputed:
        return "one layer's activations, recomputed"
    return {"load": "copies made while loading", "optimizer": "optimizer's temporaries"}.get(
        allocation.phase, f"temporaries of {_PHASES.get(allocation.phase, allocation.phase)}"
    )
