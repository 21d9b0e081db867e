"""`read_recipe`: a configuration to a `Recipe`, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from axmem_trace.config.assumptions import apply_assumptions
from axmem_trace.config.derive.adapter import derive_adapter, derive_freezing
from axmem_trace.config.derive.attention import derive_attention
from axmem_trace.config.derive.base_model import derive_base_model
from axmem_trace.config.derive.batch import derive_batch, derive_evaluation
from axmem_trace.config.derive.checkpointing import derive_checkpointing
from axmem_trace.config.derive.device_map import derive_placement
from axmem_trace.config.derive.fake_quantisation import derive_fake_quantisation
from axmem_trace.config.derive.hardware import derive_allocator, derive_gpu
from axmem_trace.config.derive.loss import derive_kernels, derive_loss
from axmem_trace.config.derive.model_kwargs import note_model_kwargs
from axmem_trace.config.derive.optimizer import derive_optimizer
from axmem_trace.config.derive.parallelism import derive_parallelism
from axmem_trace.config.derive.precision import derive_precision
from axmem_trace.config.derive.quantisation import derive_quantisation
from axmem_trace.config.derive.task import derive_model
from axmem_trace.config.document.draft import Draft
from axmem_trace.config.document.key_checks import check_types, find_plugins, note_not_modelled
from axmem_trace.config.document.old_names import refuse_removed, rename_aliases, understand_old_names
from axmem_trace.config.document.overrides import Settings, apply_overrides
from axmem_trace.config.document.yaml_reader import read_document
from axmem_trace.config.refusals import reject, reject_on_base, reject_on_gpu
from axmem_trace.config.warn import note_traps
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import BaseModel, Gpu, Recipe

HubUse = Literal["never", "fallback", "first"]


def read_recipe(
    config: str | Path | Mapping[str, Any],
    *,
    overrides: Settings = (),
    assumptions: Settings = (),
    gpu: str = "",
    num_gpus: int = 0,
    hub: HubUse = "fallback",
    trust_remote_code: bool = False,
    strict: bool = False,
) -> Recipe:
    """Everything that a run is made of, as axolotl 0.19 would derive it.

    Args:
        config: path of an axolotl YAML file, or its content as a mapping.
        overrides: `--set`: `key=value` with dots for nesting and YAML values, or a mapping.
        assumptions: `--assume`: likewise; the keys are those of `ASSUMPTIONS`.
        gpu: the target card, by name or size; empty: a nameless one that computes in bf16.
        num_gpus: how many of them; only one is estimated, more is noted.
        hub: when the Hugging Face Hub may be asked for the base model's `config.json`.
        trust_remote_code: allows the base model's own Python code, if the configuration asks for it too.
        strict: unknown keys, and keys that move memory unseen, become an error.

    Raises:
        ConfigError: the file can't be read, axolotl would refuse it, or the base model is nowhere to be found.
    """
    draft = read_draft(config, overrides)
    target = derive_gpu(gpu, num_gpus)
    reject_on_gpu(draft, target)
    base = derive_base_model(draft, hub=hub)
    reject_on_base(draft, base)
    recipe = _derive(draft, base, target, num_gpus, allow_remote_code=trust_remote_code)
    note_traps(draft, recipe)
    note_model_kwargs(draft)
    note_not_modelled(draft)
    recipe = replace(recipe, notes=tuple(draft.notes), reasons=dict(draft.reasons), lines=dict(draft.lines))
    recipe = apply_assumptions(recipe, assumptions)
    if strict:
        _refuse_notes(recipe)
    return recipe


def read_draft(config: str | Path | Mapping[str, Any], overrides: Settings = ()) -> Draft:
    """The checked configuration, before anything is derived from it."""
    document = read_document(config)
    values, touched = apply_overrides(document.values, overrides)
    draft = Draft(
        name=document.name,
        values=values,
        lines=document.lines,
        directory=document.directory,
        overridden=touched,
        plugins=find_plugins(values.get("plugins")),
    )
    rename_aliases(draft)
    check_types(draft)
    refuse_removed(draft)
    understand_old_names(draft)
    reject(draft)
    return draft


def _derive(draft: Draft, base: BaseModel, gpu: Gpu, num_gpus: int, *, allow_remote_code: bool) -> Recipe:
    precision = derive_precision(draft, gpu)
    quantisation = derive_quantisation(draft, base, precision)
    model = derive_model(draft, base, allow_remote_code=allow_remote_code)
    batch = derive_batch(draft, model)
    return Recipe(
        name=draft.name,
        model=model,
        precision=precision,
        quantisation=quantisation,
        placement=derive_placement(draft, num_gpus),
        fake_quantisation=derive_fake_quantisation(draft),
        adapter=derive_adapter(draft),
        freezing=derive_freezing(draft),
        checkpointing=derive_checkpointing(draft, base, kbit_preparation=quantisation.kbit_preparation),
        attention=derive_attention(draft, base, precision.load_dtype),
        loss=derive_loss(draft, base),
        kernels=derive_kernels(draft, base, batch.row_tokens),
        optimizer=derive_optimizer(draft),
        batch=batch,
        evaluation=derive_evaluation(draft, batch),
        gpu=gpu,
        allocator=derive_allocator(draft),
        parallelism=derive_parallelism(draft, num_gpus),
        rl=draft.get("rl") or "",
        reasons=dict(draft.reasons),
    )


def _refuse_notes(recipe: Recipe) -> None:
    refused: list[Note] = [note for note in recipe.notes if note.kind in ("ignored", "not_modelled")]
    if not refused:
        return
    first = refused[0]
    raise ConfigError(
        problem=first.text,
        file=recipe.name,
        line=first.line,
        key=first.key,
        details=tuple(
            f"also, {f'line {note.line}' if note.line else 'not in the file'}: {note.text}" for note in refused[1:]
        ),
        remedy="correct or remove the keys, or run without --strict to get the figures with notes",
    )
