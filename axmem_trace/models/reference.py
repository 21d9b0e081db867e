"""The second model that some training methods load: the reference, or a copy that is never used.

Source: axolotl 0.21 `train.py` `setup_reference_model` (another `ModelLoader.load`, after that of the policy); TRL 1.14.1
`trainer/utils.py` `create_model_from_path` (fp32, without axolotl's casts).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from axmem_trace.models.build import WatchLoading, build_model
from axmem_trace.recipe.model import Adapter, Freezing, Quantisation
from axmem_trace.recipe.objective import Reference
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.recipe.run import Attention, Checkpointing, Kernels

Watch = Callable[[Recipe], WatchLoading]
"""Called with a model's recipe; returns a context that is open while the model is loaded."""


def _unwatched(recipe: Recipe) -> WatchLoading:
    def watch(model: Any) -> AbstractContextManager[None]:
        return nullcontext()

    return watch


def build_reference(recipe: Recipe, *, device: str = "meta", watch: Watch = _unwatched) -> nn.Module | None:
    """The second model that stays on the GPU; None if there is none.

    Args:
        device: as in `build_model`.
        watch: called with the recipe of each model that is loaded, including one that does not stay.
    """
    asked = recipe.objective.reference
    if not (asked.resident_model or asked.unused_copy):
        return None
    plain = plain_recipe(recipe)
    copies = [build_model(plain, device=device, watch=watch(plain)).module]
    if asked.resident_model and asked.dtype == "float32":
        own = as_trl_loads_it(plain)
        copies.append(build_model(own, device=device, watch=watch(own)).module)
    return copies[-1].requires_grad_(False) if asked.resident_model else None


def plain_recipe(recipe: Recipe) -> Recipe:
    """The recipe of axolotl's copy: it has no trained parameters and no reference."""
    return replace(
        recipe,
        adapter=Adapter(),
        freezing=Freezing(),
        checkpointing=Checkpointing(),
        fake_quantisation=None,
        objective=replace(recipe.objective, reference=Reference()),
    )


def as_trl_loads_it(recipe: Recipe) -> Recipe:
    """The recipe with fp32, transformers' choice of attention, and none of axolotl's changes to dtypes and vocabulary."""
    precision = replace(
        recipe.precision, load_dtype="float32", upcast_before=False, cast_back=False, fp32_norms=False, fp8=False
    )
    model = replace(recipe.model, added_tokens=0, resize_embeddings_to_32x=False, shrink_embeddings=False)
    kept = recipe.quantisation.method == "checkpoint"
    return replace(
        recipe,
        precision=precision,
        quantisation=recipe.quantisation if kept else Quantisation(),
        model=model,
        attention=Attention(),
        kernels=Kernels(),
        older=replace(recipe.older, use_cache=True),  # the value in config.json; only axolotl switches it off
    )
