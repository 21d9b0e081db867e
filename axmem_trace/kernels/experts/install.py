"""Install the routing and the experts' kernels in a built model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from axmem_trace.kernels.experts.eager_loop import rules_of
from axmem_trace.kernels.experts.handed_adapters import hand_adapters_over
from axmem_trace.kernels.experts.quantised_adapters import adapters_of_quantised_experts, cache_of_unpacked_weights
from axmem_trace.kernels.experts.routing import Routing, find_tables
from axmem_trace.kernels.experts.scattermoe import run_scattermoe
from axmem_trace.kernels.experts.sonicmoe import run_sonicmoe
from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note, RefusalNote
from axmem_trace.recipe.model import EXPERT_COUNTS

_COUNTS = (*EXPERT_COUNTS, "n_experts", "num_router_classes")
"""Names of the number of experts in modules and configurations. ZAYA's router has one more class, which means no expert."""


_PLUGIN_KERNELS = {"scattermoe": run_scattermoe, "sonicmoe": run_sonicmoe}
"""The functions that axolotl's kernels plugin registers in transformers' interface before loading."""
_USUAL_LOOP = ("DbrxExperts", "SeparateExperts")
"""Experts outside transformers' interface whose loop uses the same masks."""


def install_experts(site: Site) -> None:
    """Make the model's routers choose experts as the recipe assumes, and its experts run as on the context's card."""
    asked, context = site.recipe.model.experts_implementation, site.context
    counts = count_experts(site.model)
    if not counts:
        return
    running = _choose(site.model, asked)
    routing = Routing(
        counts,
        site.recipe.router,
        always_known=not running and not _has_usual_loop(site.model),
        tables=find_tables(site.model),
    )
    routing.attach(site.recording)
    site.recording.add_rules(rules_of(routing))
    site.note(_routing_note(routing))
    for note in _implementation_notes(running, asked, context.compute_capability):
        site.note(note)
    from transformers.integrations import moe

    def can_use_grouped_mm(*args: Any) -> bool:
        return context.compute_capability >= (8, 0)  # the original's condition for a CUDA device

    site.stack.enter_context(cache_of_unpacked_weights(site.model))
    site.stack.enter_context(adapters_of_quantised_experts(site.model))
    site.replace_attribute(moe, "_can_use_grouped_mm", can_use_grouped_mm)
    if asked in running and asked in _PLUGIN_KERNELS:
        site.replace_items(moe.ExpertsInterface._global_mapping, {asked: _PLUGIN_KERNELS[asked]})
        hand_adapters_over(site, asked)


def count_experts(module: nn.Module) -> frozenset[int]:
    """The numbers of experts that the model's routers choose among, from modules and their configurations."""
    found: set[int] = set()
    for part in module.modules():
        for source in (part, getattr(part, "config", None)):
            for name in _COUNTS:
                value = getattr(source, name, None)
                values = value if isinstance(value, list | tuple) else (value,)
                found.update(each for each in values if isinstance(each, int) and each > 1)
    return frozenset(found)


def _choose(module: nn.Module, asked: str) -> frozenset[str]:
    """The implementations of the experts that use transformers' interface (`use_experts_implementation`).

    It is a kernel of axolotl's plugin if that is requested. The result is empty if the model has no such experts.
    """
    running = set()
    for part in module.modules():
        if hasattr(part, "_apply_gate") and hasattr(part, "is_transposed") and hasattr(part, "config"):
            config: Any = part.config
            if asked in _PLUGIN_KERNELS:
                config._experts_implementation = asked
            running.add(str(getattr(config, "_experts_implementation", None) or "eager"))
    return frozenset(running)


def _has_usual_loop(module: nn.Module) -> bool:
    return any(type(part).__name__ in _USUAL_LOOP for part in module.modules())


def _implementation_notes(running: frozenset[str], asked: str, compute_capability: tuple[int, int]) -> Iterator[Note]:
    key = "experts_implementation"
    if not running:
        if asked in _PLUGIN_KERNELS:
            text = f"{asked}: this model's experts do not use transformers' interface, so they run their own code"
            yield Note(kind="ignored", key=key, text=text)
        return
    names = ", ".join(sorted(running))
    if asked == "sonicmoe" and compute_capability < (9, 0):
        text = "axolotl refuses sonicmoe on cards before Hopper (`_check_sonicmoe_gpu_compat`; the figures are with it)"
        yield RefusalNote(key="use_sonicmoe", text=text, remedy="set `use_sonicmoe: false`, or name a newer card")
    why = "requested" if asked else "transformers' default, `get_correct_experts_implementation` (modeling_utils.py)"
    yield Note(kind="traced", key=key, text=f"experts run as {names}: {why}")


def _routing_note(routing: Routing) -> Note:
    counts = " or ".join(str(count) for count in sorted(routing.expert_counts))
    if routing.router == "worst":
        how = "every token goes to the same experts, so these get all tokens and the others none"
    else:
        how = "tokens are distributed evenly (`--assume router=worst` for the other extreme)"
    return Note(kind="assumed", key="router", text=f"routing to {counts} experts: {how}")
