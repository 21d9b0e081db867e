"""Records of a tiny model on meta, of loading or of the whole run, as `axmem_trace.estimate` makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axmem_trace.config import read_recipe
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.models.built import BuiltModel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.training.loading import LoadRecorder
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import make_recording, record_run
from support.tiny_models import write_tiny_model


def make_config(directory: Path, family: str = "llama", **keys: Any) -> dict[str, Any]:
    """A configuration with one row per micro-batch. The keys are added or replaced."""
    return {
        "base_model": write_tiny_model(family, directory / family),
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }


def make_recipe(directory: Path, family: str = "llama", **keys: Any) -> Recipe:
    """The recipe of that configuration."""
    return read_recipe(make_config(directory, family, **keys), hub="never")


def load(recipe: Recipe) -> tuple[Ledger, BuiltModel]:
    """The record of loading, and the model."""
    recording, built = _loaded(recipe)
    return recording.recorder.make_ledger(), built


def record(recipe: Recipe) -> tuple[Ledger, BuiltModel]:
    """The record of the whole run, and the model."""
    recording, built = _loaded(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module), recording=recording).ledger, built


def _loaded(recipe: Recipe) -> tuple[RecordingMode, BuiltModel]:
    recording = make_recording(recipe)
    return recording, build_model(recipe, watch=LoadRecorder(recording, recipe).loaded)
