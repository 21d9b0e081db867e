"""The recipe: all settings of a run, resolved. Frozen, and without torch.

Every package after `config` reads these fields and nothing else; no field is `None` to mean "the default". A value that
axolotl derives has its reason in `Recipe.reasons`, under the field's dotted path (`"attention.kernel"`).
Dtypes are torch's names without the prefix: `"bfloat16"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from axmem_trace.notes import Note, RefusalNote
from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.model import (
    EMPTY,
    Adapter,
    BaseModel,
    Dtype,
    FakeQuantisation,
    Freezing,
    Model,
    Placement,
    Precision,
    Quantisation,
    empty_mapping,
)
from axmem_trace.recipe.objective import Objective
from axmem_trace.recipe.older import Older
from axmem_trace.recipe.parallel import Parallel
from axmem_trace.recipe.run import (
    Allocator,
    Attention,
    Axolotl,
    Batch,
    Checkpointing,
    Evaluation,
    Gpu,
    Kernels,
    Loss,
    Optimizer,
)

__all__ = [
    "EMPTY",
    "Adapter",
    "Allocator",
    "Alternative",
    "Attention",
    "Axolotl",
    "BaseModel",
    "Batch",
    "Checkpointing",
    "Dtype",
    "Evaluation",
    "FakeQuantisation",
    "Freezing",
    "Gpu",
    "Kernels",
    "Loss",
    "Model",
    "Objective",
    "Older",
    "Optimizer",
    "Parallel",
    "Placement",
    "Precision",
    "Quantisation",
    "Reason",
    "Recipe",
    "RowLengths",
    "Written",
]


Origin = Literal["config", "default", "derived", "assume", "override"]
"""The origin of a value; see `Reason`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """The reason for a value.

    `origin` is `config` (the YAML says so), `default` (axolotl's own default), `derived` (axolotl works it out from
    other keys or from the model), `assume` (`--assume`) or `override` (`--set`).
    """

    value: str
    text: str
    origin: Origin
    line: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A key as the user wrote it: perhaps by an older name, perhaps on the command line."""

    key: str
    value: str = ""
    """As text, shortened where it is long."""
    line: int = 0
    """1-based line in the file; 0 where it is not there."""
    flag: str = ""
    """`--set`, where that gave the key."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, with all settings resolved."""

    name: str
    """The configuration file's path as given, or `<config>` for a mapping."""
    model: Model
    precision: Precision = Precision()
    quantisation: Quantisation = Quantisation()
    placement: Placement = Placement()
    fake_quantisation: FakeQuantisation | None = None
    """`qat`; None: the layers are plain."""
    adapter: Adapter = Adapter()
    freezing: Freezing = Freezing()
    checkpointing: Checkpointing = Checkpointing()
    attention: Attention = Attention()
    loss: Loss = Loss()
    kernels: Kernels = Kernels()
    optimizer: Optimizer = Optimizer()
    batch: Batch = Batch()
    lengths: RowLengths = RowLengths()
    evaluation: Evaluation = Evaluation()
    gpu: Gpu = Gpu()
    allocator: Allocator = Allocator()
    older: Older = Older()
    parallel: Parallel = Parallel()
    router: Literal["balanced", "worst"] = "balanced"
    objective: Objective = Objective()
    axolotl: Axolotl = Axolotl()
    fold: bool = True
    """Repeated layers are traced once, if they are equal. The figures are the same."""
    logging_steps: int = 0
    """Every so many steps a line is logged; 0: axolotl takes 1 to 10, by the number of steps of the run."""
    reasons: Mapping[str, Reason] = field(default_factory=empty_mapping)
    notes: tuple[Note, ...] = ()
    written: Mapping[str, Written] = field(default_factory=empty_mapping)
    """What the user wrote for each key, dots between the names of nested ones."""
    alternatives: tuple[Alternative, ...] = ()

    @property
    def refusals(self) -> tuple[RefusalNote, ...]:
        """Why the run can't run, if the configuration shows it."""
        return tuple(note for note in self.notes if isinstance(note, RefusalNote))


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """The same configuration, run differently: as in older releases, or by an alternative. Its figure is compared."""

    recipe: Recipe | None
    """None: an estimate in addition to the run would take too long."""
    note: Note
    """The note about the difference. If it is among the run's notes, the figure is added to that one."""
    words: str
    """The difference in words: "`adapter: qlora`"."""
