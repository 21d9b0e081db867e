"""The accuracy of the figures: our error in measured runs of the same kind.

`errors.json` is written by `scripts/write_errors.py` from `tests/measured/published/runs.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from axmem_trace.recipe.model import EXPERT_COUNTS
from axmem_trace.recipe.parallel import engine_name
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.verdict import MEASURED_ERROR, MEASURED_ERROR_WITHOUT_EXPANDABLE_SEGMENTS

FILE = Path(__file__).with_name("errors.json")
ALLOCATED, RESERVED, NVIDIA_SMI = "max_allocated", "max_reserved", "nvidia-smi"
DEFAULT, EXPANDABLE = "PyTorch's default allocator", "expandable segments"

_PLAIN_LOSSES = ("native", "shifted_copy", "upcast_shifted_copy", "half_shifted_copy", "none")
_FUSED_LOSSES = ("liger_cross_entropy", "liger_fused_linear", "cut_cross_entropy")
_WEIGHTS = (16, 8, 3, 4, 2, 1)
"""The weight of a difference in each part of a kind, in the search for the nearest kind."""
_ONE_OR_MANY = 8
"""The additional weight if one kind is on one GPU and the other on several."""
ENOUGH_RUNS = 10
"""With fewer runs, the worst error is shown instead of that of nine of ten runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """The kind of a run. Each measured error belongs to runs of one kind."""

    engine: str = "one GPU"
    """`one GPU`, `FSDP1`, `DDP`, ..."""
    model: str = "text"
    """`text` (dense), `experts`, `images`, `classifier`."""
    method: str = "full"
    """`full`, `partial`, `lora`, `qlora`; preference training is named before it: `dpo, lora`."""
    quantisation: str = "none"
    """The quantisation of the base weights: `none`, `4 bit`, `8 bit`, `gptq`, ..."""
    kernels: str = "plain"
    """`plain`; `fused` (Liger, cut cross-entropy, LoRA kernels); `compiled`; or the name of another loss."""
    allocator: str = EXPANDABLE
    """`expandable segments` (axolotl's setting) or `PyTorch's default allocator`."""

    def describe(self, *, allocator: bool = False) -> str:
        """The kind in words.

        >>> Kind(method="lora", quantisation="gptq", kernels="fused").describe()
        'one GPU, lora on gptq, fused kernels'
        """
        model = "" if self.model == "text" else f"{self.model}, "
        plain = self.quantisation == "none" or self.method.endswith("qlora")
        method = self.method if plain else f"{self.method} on {self.quantisation}"
        kernels = self.kernels if self.kernels.endswith("loss") else f"{self.kernels} kernels"
        return f"{self.engine}, {model}{method}, {kernels}" + (f", {self.allocator}" if allocator else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredError:
    """Our error in the measured runs of one kind and one metric: predicted / measured - 1, as fractions."""

    kind: Kind
    metric: str
    """`max_allocated`, `max_reserved` or `nvidia-smi`."""
    runs: int
    """The number of measured runs."""
    half_within: float
    """The median of the absolute error."""
    nine_of_ten_within: float
    """The error of nine of ten runs is at most this, in either direction."""
    worst_low: float
    """The largest error of a prediction that was too low, as a negative number; 0: there was none."""
    worst_high: float
    """The largest error of a prediction that was too high; 0: there was none."""
    too_low_share: float
    """The share of the runs whose prediction was too low."""

    @property
    def within(self) -> float:
        """The error of nine of ten runs is at most this; with fewer than `ENOUGH_RUNS` runs, the error of all."""
        return self.nine_of_ten_within if self.runs >= ENOUGH_RUNS else max(abs(self.worst_low), self.worst_high)

    @property
    def missing_share(self) -> float:
        """How much more than predicted a run needed at most, as a share of the prediction. If the prediction is too low
        by a share e of the measured figure, this is e / (1 - e)."""
        return abs(self.worst_low) / (1 - abs(self.worst_low))


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """How far the predictions for measured runs of this kind were from the measured figures."""

    kind: Kind = Kind()
    """The kind of this run."""
    measured: bool = False
    """Whether a run of this kind was measured."""
    errors: tuple[MeasuredError, ...] = ()
    """The errors of this kind, one for each metric; if this kind was not measured, those of the nearest kind."""
    tight_share: float = 0.0
    """If less than this share of the needed memory stays free, the verdict is `tight`. In a report it is larger if batches
    that differ in length may need more and were not simulated."""
    text: str = ""
    """All this in one sentence."""


def find_kind(recipe: Recipe) -> Kind:
    """The kind of a run."""
    return Kind(
        engine=engine_name(recipe.parallel.engine),
        model=_model(recipe),
        method=_method(recipe),
        quantisation=_quantisation(recipe),
        kernels=_kernels(recipe),
        allocator=EXPANDABLE if recipe.allocator.expandable_segments else DEFAULT,
    )


def _model(recipe: Recipe) -> str:
    if recipe.model.task == "image-text-to-text":
        return "images"
    if recipe.model.task != "causal-lm":
        return "classifier"
    config = recipe.model.base.config
    parts = [config, config.get("text_config") or {}]
    counts = [part.get(key) for part in parts for key in EXPERT_COUNTS]
    return "experts" if any(isinstance(count, int) and count > 1 for count in counts) else "text"


def _method(recipe: Recipe) -> str:
    adapter, objective = recipe.adapter.kind, recipe.objective.method
    what = adapter if adapter != "none" else "partial" if recipe.freezing.unfrozen else "full"
    return what if objective == "supervised" else f"{objective}, {what}"


def _quantisation(recipe: Recipe) -> str:
    method = recipe.quantisation.method
    if method == "checkpoint":
        return str((recipe.model.base.config.get("quantization_config") or {}).get("quant_method", "quantised"))
    return {"bnb_4bit": "4 bit", "bnb_8bit": "8 bit"}.get(method, method)


def _kernels(recipe: Recipe) -> str:
    kernels, loss = recipe.kernels, recipe.loss
    if kernels.torch_compile:
        return "compiled"
    if loss.path not in (*_PLAIN_LOSSES, *_FUSED_LOSSES):
        return f"{loss.path} loss"
    fused = kernels.liger or kernels.lora or kernels.tiled_mlp or loss.path in _FUSED_LOSSES
    return "fused" if fused or loss.cross_entropy != "torch" else "plain"


@cache
def read_errors() -> tuple[MeasuredError, ...]:
    """Every row of the package's table."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))["errors"]
    return tuple(MeasuredError(**{**row, "kind": Kind(**row["kind"])}) for row in rows)


def find_accuracy(kind: Kind) -> Accuracy:
    """The measured error of runs of a kind.

    If the kind was not measured, the error is that of the nearest kind, and `tight_share` is the worst of all kinds
    (for reserved memory: of the kinds with the same engine, if there are any). `tight_share` is never less than the
    error of all one-GPU runs together, so a few runs with a small error can't make it too small.

    Tensors do not depend on the allocator, so errors of allocated memory count for both settings of the allocator.
    Errors of reserved memory count only for their own setting.
    """
    table = read_errors()
    allocated = [error for error in table if error.metric == ALLOCATED]
    reserved = [error for error in table if error.metric != ALLOCATED]
    same = [error for error in allocated if _distance(error.kind, kind) < 2]
    same_reserved = [error for error in reserved if error.kind == kind]
    errors = (*(same or _nearest(allocated, kind)), *(same_reserved or _nearest(reserved, kind)))
    counted = [*(same or allocated), *same_reserved]
    if not same_reserved and kind.allocator != EXPANDABLE:
        counted += [error for error in reserved if error.kind.engine == kind.engine] or reserved
    least = MEASURED_ERROR if kind.allocator == EXPANDABLE else MEASURED_ERROR_WITHOUT_EXPANDABLE_SEGMENTS
    share = max(least, *(error.missing_share for error in counted))
    measured = bool(same or same_reserved)
    return Accuracy(
        kind=kind,
        measured=measured,
        errors=errors,
        tight_share=share,
        text=_describe(kind, same, same_reserved, errors),
    )


def _distance(one: Kind, other: Kind) -> int:
    """0 for the same kind; 1 if only the allocator differs."""
    pairs = zip(astuple(one), astuple(other), _WEIGHTS, strict=True)
    alone = "one GPU"
    more = _ONE_OR_MANY if (one.engine == alone) != (other.engine == alone) else 0
    return more + sum(weight for left, right, weight in pairs if left != right)


def _nearest(errors: Iterable[MeasuredError], kind: Kind) -> tuple[MeasuredError, ...]:
    found = min(errors, key=lambda error: (_distance(error.kind, kind), -error.runs))
    return (found,)


def _describe(
    kind: Kind, same: list[MeasuredError], same_reserved: list[MeasuredError], errors: tuple[MeasuredError, ...]
) -> str:
    if same or same_reserved:
        text = f"runs of this kind ({kind.describe()}): {_figures((*same, *same_reserved))}"
        return text if same_reserved else f"{text}; reserved not measured with {kind.allocator}"
    nearest = errors[0]
    return (
        f"no measured run of this kind: {kind.describe()}; the nearest is {nearest.kind.describe()}: "
        f"{_figures((nearest,))}"
    )


_WORDS = {ALLOCATED: "allocated", RESERVED: "reserved", NVIDIA_SMI: "nvidia-smi"}


def _figures(errors: Iterable[MeasuredError]) -> str:
    """The figures in words, rounded up. Figures of the same number of runs are put together.

    >>> error = MeasuredError(kind=Kind(), metric="nvidia-smi", runs=30, half_within=0.0, nine_of_ten_within=0.0221,
    ...                       worst_low=-0.031, worst_high=0.0, too_low_share=0.5)
    >>> from dataclasses import replace
    >>> _figures([error, replace(error, metric="max_reserved", runs=3)])
    'nvidia-smi within 2.3 % in nine of ten, 30 runs; reserved within 3.1 % in all 3 runs'
    """
    groups: dict[int, list[str]] = {}
    for error in errors:
        per_mille = max(math.ceil(round(1000 * error.within, 3)), 1)
        groups.setdefault(error.runs, []).append(f"{_WORDS[error.metric]} within {per_mille / 10:g} %")
    return "; ".join(f"{', '.join(figures)} {_of_runs(runs)}" for runs, figures in groups.items())


def _of_runs(count: int) -> str:
    if count >= ENOUGH_RUNS:
        return f"in nine of ten, {count} runs"
    return f"in all {count} runs" if count > 1 else "in the only run"
