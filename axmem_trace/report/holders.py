"""What uses the memory at the peak, by names that a user knows: logits and loss, layer weights, optimizer states, ...

Each allocation that is alive then belongs to one name, so the holders add up to the allocated peak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from axmem_trace.ledger import Allocation, Ledger, sum_by
from axmem_trace.model_facts import ModelFacts
from axmem_trace.report.types import Holder

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
"""Models other than the reference that only score, by the beginning of their modules' names."""
_PHASES = {"eval": "evaluation", "generate": "generation", "score": "scoring"}
_BY_OPERATOR = (
    ("cublas", "cuBLAS workspace"),
    ("all_gather", "gathered parameters"),
    ("reduce_scatter", "gradients being reduced"),
    ("all_reduce", "gradients being reduced"),
    ("dequant", "dequantised weights"),
)
"""Parts of an operator's name that show the purpose of a temporary tensor."""


@dataclass(frozen=True, slots=True)
class _Places:
    """The names of a model's parts: output layer, loss and layers."""

    head: str
    """The output layer; empty if none has a known name."""
    wrappers: frozenset[str]
    """The modules around the output layer, whose own code is the loss."""
    embeddings: frozenset[str]
    stack: str
    """The numbered list with the most weights: `model.layers`."""


def list_holders(facts: ModelFacts, ledger: Ledger, *, peak_tick: int) -> tuple[Holder, ...]:
    """Blocks alive at `peak_tick` by holder, the largest first."""
    places, columns = _find_places(facts), ledger.columns
    alive = columns.alive(peak_tick) & columns.where(lambda kind: kind.device == "gpu")
    examples, sizes = columns.sum_by_example(alive)
    sums = sum_by((_name(each, places), nbytes) for each, nbytes in zip(examples, sizes, strict=True))
    return tuple(Holder(name=name, bytes=nbytes) for name, nbytes in sorted(sums.items(), key=lambda item: -item[1]))


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


def make_namer(facts: ModelFacts) -> Callable[[Allocation], str]:
    """A function that names the purpose of any allocation of this model."""
    places = _find_places(facts)
    return lambda allocation: _name(allocation, places)


def name_holder(allocation: Allocation, facts: ModelFacts) -> str:
    """The purpose of one allocation."""
    return _name(allocation, _find_places(facts))


def _find_places(facts: ModelFacts) -> _Places:
    head = next((each.name for each in facts.modules if each.name.rpartition(".")[2] in _HEADS), "")
    weights: defaultdict[str, int] = defaultdict(int)
    for fact in facts.tensors:
        weights[_stack_of(fact.module)] += fact.nbytes
    weights.pop("", None)
    return _Places(
        head=head,
        wrappers=frozenset({"", *_ancestors(head)}),
        embeddings=frozenset(
            each.name for each in facts.modules if "Embedding" in each.class_name and "Rotary" not in each.class_name
        ),
        stack=max(weights, key=lambda name: weights[name], default=""),
    )


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


def _name(allocation: Allocation, places: _Places) -> str:
    bucket, module = allocation.bucket, allocation.module
    if bucket == "reference":
        return next((name for start, name in _FROZEN if module.startswith(start)), _BY_BUCKET[bucket])
    if bucket in _BY_BUCKET:
        return _BY_BUCKET[bucket]
    if bucket == "weights":
        return _name_weights(module, places)
    in_head = bool(places.head) and (module == places.head or module.startswith(f"{places.head}."))
    if (
        allocation.role == ""
        and (in_head or module in places.wrappers)
        and allocation.phase not in ("load", "optimizer")
    ):
        return LOGITS
    if bucket == "activations":
        layer = _layer_of(module)
        return LAYER_INPUTS if layer and module == layer else IN_LAYERS if layer else "other activations"
    return _name_workspace(allocation)


def _name_weights(module: str, places: _Places) -> str:
    stack = _stack_of(module)
    if stack:
        return LAYER_WEIGHTS if stack == places.stack else f"weights of {stack.removeprefix('base_model.model.')}"
    if places.head and (module == places.head or module.startswith(f"{places.head}.")):
        return "output layer's weights"
    if any(module == name or module.startswith(f"{name}.") for name in places.embeddings):
        return "embedding weights"
    return "other weights"


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
