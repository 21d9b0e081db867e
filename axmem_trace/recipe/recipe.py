"""The recipe: all settings of a run, resolved. Frozen types, without torch.

Every package after `config` reads only these fields. No field uses `None` to mean "the default". A value that
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

    `origin` is `config` (a key of the YAML), `default` (axolotl's own default), `derived` (axolotl derives it from other
    keys or from the model), `assume` (`--assume`) or `override` (`--set`).
    """

    value: str
    text: str
    origin: Origin
    line: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A key as the user wrote it: perhaps with an older name, perhaps on the command line."""

    key: str
    value: str = ""
    """The value as text, shortened if it is long."""
    line: int = 0
    """1-based line in the file; 0 if the key is not in the file."""
    flag: str = ""
    """`--set` if the key was given there; else empty."""


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
    """`qat`; None: no fake quantisation."""
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
    """Equal layers are traced only once. The figures are the same."""
    logging_steps: int = 0
    """The number of steps between two logged lines; 0: axolotl chooses 1 to 10, from the number of steps of the run."""
    reasons: Mapping[str, Reason] = field(default_factory=empty_mapping)
    notes: tuple[Note, ...] = ()
    written: Mapping[str, Written] = field(default_factory=empty_mapping)
    """Key -> how the user wrote it. Nested keys have dots between their names."""
    alternatives: tuple[Alternative, ...] = ()

    @property
    def refusals(self) -> tuple[RefusalNote, ...]:
        """Reasons in the configuration why the run can't run."""
        return tuple(note for note in self.notes if isinstance(note, RefusalNote))


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """The same configuration run in another way: as in older releases, or with another key. The figures are compared."""

    recipe: Recipe | None
    """None: an estimate in addition to the run would take too long."""
    note: Note
    """The note about the difference. If it is among the run's notes, the figure is added to that one."""
    words: str
    """The difference in words: "`adapter: qlora`"."""
