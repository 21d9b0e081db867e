"""Facts of the built model: its modules, parameters and buffers. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WeightRole = Literal["weight", "adapter"]
Division = Literal["", "sharded", "replicated"]
"""With several GPUs: `sharded` if this rank has a part of the tensor, `replicated` if it has all of it; empty with one
GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFact:
    """One parameter or buffer of the model, counted once even if several names share its storage.

    The state tensors of a quantised weight (bitsandbytes' `absmax`, GPTQ's `scales`, ...) are buffers: they belong to
    the parameter and are saved with it. `elements` counts the stored elements (a packed nf4 weight stores half a byte
    per logical weight). `logical_elements` counts the weights that they represent, as model cards do; it is 0 for a
    quantisation state.
    """

    name: str
    module: str
    kind: Literal["parameter", "buffer"]
    role: WeightRole
    dtype: str
    trainable: bool
    elements: int
    logical_elements: int
    nbytes: int
    device: Literal["gpu", "cpu"] = "gpu"
    division: Division = ""
    whole_elements: int = 0
    """For a sharded tensor: the elements of all ranks together."""

    @property
    def weights_here(self) -> int:
        """The number of logical elements that the elements of this rank represent."""
        return (
            self.logical_elements * self.elements // self.whole_elements
            if self.whole_elements
            else self.logical_elements
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleFact:
    """One module: its dotted name (`""` for the root) and its class."""

    name: str
    class_name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """Facts of the built model. The report needs them after the model is freed."""

    name: str
    model_type: str
    class_name: str
    config_source: str
    """Where `config.json` came from: a directory, the cache, the catalogue or the Hub."""
    tensors: tuple[TensorFact, ...]
    modules: tuple[ModuleFact, ...]

    @property
    def parameters(self) -> int:
        """The number of logical parameters. A packed weight counts as the weights that it represents, also if it is a
        buffer (GPTQ)."""
        return sum(fact.logical_elements for fact in self.tensors)

    @property
    def trainable_parameters(self) -> int:
        """The number of trainable logical parameters."""
        return sum(fact.logical_elements for fact in self.tensors if fact.kind == "parameter" and fact.trainable)

    def trained_head_elements(self, embedding_names: Sequence[str]) -> int:
        """Elements of the output head where it trains; a tied head is the embedding. 0: it is frozen.

        Args:
            embedding_names: parts of the names of embedding and head, as `Model.embedding_names`.
        """
        for name in reversed(embedding_names):
            found = [fact for fact in self.tensors if fact.trainable and fact.role == "weight" and name in fact.name]
            if found:
                return sum(fact.logical_elements for fact in found)
        return 0
