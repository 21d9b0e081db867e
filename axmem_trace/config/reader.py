"""`read_recipe`: turns a configuration into a `Recipe`, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from axmem_trace.catalogue.lookup import HubUse
from axmem_trace.config.alternatives import find_alternatives
from axmem_trace.config.assumptions import apply_assumptions
from axmem_trace.config.axolotl import choose_release
from axmem_trace.config.derive.adapter import derive_adapter
from axmem_trace.config.derive.attention import derive_attention
from axmem_trace.config.derive.base_model import derive_base_model
from axmem_trace.config.derive.batch import derive_batch
from axmem_trace.config.derive.checkpointing import derive_checkpointing
from axmem_trace.config.derive.context import attention_of_ring, derive_context
from axmem_trace.config.derive.device_map import derive_placement
from axmem_trace.config.derive.evaluation import derive_evaluation
from axmem_trace.config.derive.experts import note_experts
from axmem_trace.config.derive.fake_quantisation import derive_fake_quantisation
from axmem_trace.config.derive.freezing import derive_freezing
from axmem_trace.config.derive.hardware import derive_allocator, derive_gpu, derive_margin, read_count
from axmem_trace.config.derive.kernels import derive_kernels
from axmem_trace.config.derive.lengths import derive_lengths
from axmem_trace.config.derive.loss import derive_loss
from axmem_trace.config.derive.model_kwargs import note_model_kwargs
from axmem_trace.config.derive.nccl import derive_nccl_bytes
from axmem_trace.config.derive.objective import (
    adapter_of_trainer,
    derive_objective,
    is_labelled,
    rows_of_objective,
)
from axmem_trace.config.derive.optimizer import derive_optimizer
from axmem_trace.config.derive.parallelism import derive_parallel
from axmem_trace.config.derive.precision import derive_precision
from axmem_trace.config.derive.quantisation import derive_quantisation
from axmem_trace.config.derive.rollouts import find_reward_models
from axmem_trace.config.derive.task import derive_model
from axmem_trace.config.document.draft import Draft
from axmem_trace.config.document.key_checks import (
    check_types,
    drop_notes_on_refused_keys,
    find_plugins,
    note_duplicates,
    note_not_modelled,
)
from axmem_trace.config.document.old_names import (
    refuse_removed,
    rename_aliases,
    understand_old_names,
    understand_old_values,
)
from axmem_trace.config.document.overrides import Settings, apply_overrides, merge_settings
from axmem_trace.config.document.written import find_written_keys
from axmem_trace.config.document.yaml_reader import Document, read_document
from axmem_trace.config.refusals import refuse_contradictions, refuse_on_base, refuse_on_gpu
from axmem_trace.config.warn import note_warnings
from axmem_trace.config.warn_deepspeed import note_deepspeed
from axmem_trace.config.warn_objective import note_objective
from axmem_trace.config.warn_ranks import note_warnings_of_ranks
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Notes
from axmem_trace.recipe.parallel import Context, Parallel
from axmem_trace.recipe.recipe import (
    Adapter,
    Allocator,
    Attention,
    Axolotl,
    BaseModel,
    Batch,
    Checkpointing,
    Evaluation,
    Freezing,
    Gpu,
    Kernels,
    Loss,
    Model,
    Objective,
    Optimizer,
    Placement,
    Precision,
    Quantisation,
    Recipe,
    RowLengths,
)


def read_recipe(
    config: str | Path | Mapping[str, Any],
    *,
    overrides: Settings = (),
    assumptions: Settings = (),
    gpu: str = "",
    num_gpus: int = 0,
    num_nodes: int = 1,
    margin: str = "",
    hub: HubUse = "fallback",
    trust_remote_code: bool = False,
    strict: bool = False,
    axolotl: str = "",
) -> Recipe:
    """All parts of a run, derived as axolotl does.

    Args:
        config: path of an axolotl YAML file, or its content as a mapping.
        overrides: `--set`: `key=value` with dots for nesting and YAML values, or a mapping.
        assumptions: `--assume`: in the same forms; the keys are those of `ASSUMPTIONS`.
        gpu: the target card, by name or size, and the number of cards (`4 x A100-40GB`); empty: an unnamed card with bf16.
        num_gpus: the number of cards in each machine; 0: as in `gpu`, else the smallest number for the configuration.
        num_nodes: the number of machines.
        margin: memory of each card that must stay free, as a size (`1GiB`) or a share (`5%`).
        hub: when the base model's `config.json` may be loaded from the Hugging Face Hub.
        trust_remote_code: allows the base model's own Python code, if the configuration requests it too.
        strict: unknown keys, and keys whose effect on memory is not modelled, become an error.
        axolotl: the release whose rules apply; empty: the one that is installed here, else the newest known.

    Raises:
        ConfigError: the file can't be read, axolotl would refuse it, or the base model is not found.
    """
    if hub not in ("never", "fallback", "first"):
        raise ConfigError(
            f"hub={hub!r} is not one of never, fallback and first", remedy="leave it out, or give one of these"
        )
    document = read_document(config)

    def read(further: Mapping[str, Any], assumed: Mapping[str, Any]) -> Recipe:
        draft = read_draft(document, merge_settings(overrides, further, "--set"), axolotl)
        count, card = draft.attempt(read_count, gpu, num_gpus, default=(num_gpus, ""))
        parallel = draft.attempt(derive_parallel, draft, count, num_nodes, default=Parallel())
        settings = merge_settings(assumptions, assumed, "--assume")
        return _resolve(
            draft, settings, (card, margin), parallel, hub, trust_remote_code=trust_remote_code, strict=strict
        )

    recipe = read({}, {})
    return replace(recipe, alternatives=tuple(find_alternatives(recipe, read)))


def _resolve(
    draft: Draft,
    assumptions: Settings,
    card: tuple[str, str],
    parallel: Parallel,
    hub: HubUse,
    *,
    trust_remote_code: bool,
    strict: bool,
) -> Recipe:
    gpu, margin = card
    target = draft.attempt(derive_gpu, gpu, parallel.num_gpus, default=Gpu(count=parallel.num_gpus))
    target = draft.attempt(derive_margin, margin, target, default=target)
    target = replace(target, nccl_bytes=derive_nccl_bytes(draft, target, parallel))
    refuse_on_gpu(draft, target)
    base = draft.attempt(derive_base_model, draft, hub=hub, default=_UNKNOWN)
    if base is not _UNKNOWN:
        draft.attempt(refuse_on_base, draft, base, default=None)
    recipe = _derive(draft, base, target, parallel, allow_remote_code=trust_remote_code)
    rollouts = draft.attempt(find_reward_models, draft, recipe.objective.rollouts, hub, default=None)
    recipe = replace(recipe, objective=replace(recipe.objective, rollouts=rollouts))
    if not draft.errors:
        note_warnings(draft, recipe)
        note_warnings_of_ranks(draft, recipe)
        note_deepspeed(draft, recipe)
        note_objective(draft, recipe)
    note_model_kwargs(draft)
    note_not_modelled(draft)
    if strict:
        _fail_on_notes(draft)
    with draft.collecting():
        recipe = apply_assumptions(recipe, assumptions)
    draft.raise_errors()
    reasons = {**draft.reasons, **recipe.reasons}
    return replace(recipe, notes=tuple(draft.notes), reasons=reasons, written=dict(draft.written))


_UNKNOWN = BaseModel(name="", config={}, source="", directory="", model_type="", text_model_type="")
"""Replaces a base model that was not found, so that further errors can be found."""


def read_draft(document: Document, overrides: Settings = (), axolotl: str = "") -> Draft:
    """The checked configuration, before anything is derived from it."""
    chosen = choose_release(axolotl)
    release = chosen.release
    values, given = apply_overrides(document.values, overrides)
    draft = Draft(
        name=document.name,
        values=values,
        raw=dict(values),
        release=release,
        written=find_written_keys(document, values, given),
        directory=document.directory,
        plugins=find_plugins(values.get("plugins"), release) | release.behaviour.always_listed_plugins,
        notes=Notes(chosen.notes),
        reasons={"axolotl.version": chosen.reason},
    )
    note_duplicates(draft, document.duplicates)
    rename_aliases(draft)
    understand_old_values(draft)
    check_types(draft)
    refuse_removed(draft)
    understand_old_names(draft)
    refuse_contradictions(draft)
    drop_notes_on_refused_keys(draft)
    return draft


def _derive(draft: Draft, base: BaseModel, gpu: Gpu, parallel: Parallel, *, allow_remote_code: bool) -> Recipe:
    """Derives each part separately. If one fails, the error is recorded, and parts that depend on it use its default."""
    attempt = draft.attempt
    precision = attempt(derive_precision, draft, gpu, base, parallel.engine, default=Precision())
    quantisation = attempt(derive_quantisation, draft, base, precision, default=Quantisation())
    model = attempt(derive_model, draft, base, allow_remote_code=allow_remote_code, default=Model(base=base))
    batch = attempt(derive_batch, draft, model, default=Batch())
    kbit = quantisation.kbit_preparation
    objective = attempt(derive_objective, draft, batch.row_tokens, parallel.num_gpus, default=Objective())
    attention = attempt(derive_attention, draft, base, precision.load_dtype, default=Attention())
    attempt(note_experts, draft, base, parallel, default=None)
    context = attempt(derive_context, draft, model, parallel, attention.kernel, default=Context())
    return Recipe(
        name=draft.name,
        model=model,
        precision=precision,
        quantisation=quantisation,
        placement=attempt(derive_placement, draft, parallel.num_gpus, default=Placement()),
        fake_quantisation=attempt(derive_fake_quantisation, draft, default=None),
        adapter=adapter_of_trainer(attempt(derive_adapter, draft, default=Adapter()), objective, quantisation),
        freezing=attempt(derive_freezing, draft, default=Freezing()),
        checkpointing=attempt(derive_checkpointing, draft, base, kbit_preparation=kbit, default=Checkpointing()),
        attention=attention_of_ring(attention, context),
        loss=attempt(derive_loss, draft, base, default=Loss()) if is_labelled(objective) else Loss(),
        objective=objective,
        kernels=attempt(derive_kernels, draft, base, -(-batch.row_tokens // context.size), default=Kernels()),
        optimizer=attempt(derive_optimizer, draft, default=Optimizer()),
        batch=rows_of_objective(batch, objective),
        lengths=attempt(derive_lengths, draft, batch, default=RowLengths()),
        evaluation=rows_of_objective(attempt(derive_evaluation, draft, batch, default=Evaluation()), objective),
        gpu=gpu,
        allocator=attempt(derive_allocator, draft, default=Allocator()),
        parallel=replace(parallel, context=context),
        logging_steps=int(draft.get("logging_steps") or 0),
        axolotl=Axolotl(version=draft.release.version, pins=draft.release.pins),
        reasons=dict(draft.reasons),
    )


def _fail_on_notes(draft: Draft) -> None:
    """`--strict`: each key that is ignored, unknown, given twice or not modelled is an error."""
    for note in draft.notes:
        if note.kind in ("ignored", "not_modelled") or note in draft.strict:
            remedy = "correct or remove the key, or run without --strict to get the figures with notes"
            error = draft.error(note.text, note.key, remedy=remedy)
            error.line = note.line or error.line
            draft.fail(error)
