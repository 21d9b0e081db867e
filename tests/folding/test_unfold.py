"""A ledger written by hand for a model of five layers, unfolded to nine; and cases that must not be folded. No
torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from axmem_trace.folding.facts import unfold_facts
from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.folding.sections import OUTSIDE, EventLayers, LayerPass, Once, find_sections
from axmem_trace.folding.unfold import Unfolding, growing_sizes
from axmem_trace.ledger import NEVER, Allocation, Ledger, Mark
from axmem_trace.model_facts import ModelFacts, ModuleFact, TensorFact


def repetition_of(layers: int, missing: int) -> Repetition:
    """One layer before the kept periods, and one layer after them."""
    return Repetition(
        path="model.layers", length=layers + missing, first=1, period=1, periods=layers - 2, missing=missing
    )


class Writer:
    """Writes the events of a run, and stores the layer of each event."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self.marks: list[Mark] = []
        self.at_tick: dict[int, int] = {}
        self.tick = 0

    def mark(self, phase: str) -> None:
        self.tick += 1
        self.marks.append(Mark(tick=self.tick, phase=phase, step=1))  # type: ignore[arg-type]

    def allocate(self, nbytes: int, layer: int, op: str = "op", *, inside: bool = True) -> int:
        self._tick(layer if inside else None)
        module = f"model.layers.{layer}.mlp" if layer >= 0 else "model.head"
        self.allocations.append(Allocation(nbytes=nbytes, allocated_tick=self.tick, module=module, op=op))
        return len(self.allocations) - 1

    def free(self, number: int, layer: int | None) -> None:
        self._tick(layer)
        self.allocations[number] = replace(self.allocations[number], freed_tick=self.tick)

    def _tick(self, layer: int | None) -> None:
        self.tick += 1
        if layer is not None:
            self.at_tick[self.tick] = layer

    def ledger(self) -> Ledger:
        return Ledger(allocations=tuple(self.allocations), marks=tuple(self.marks), ticks=self.tick + 1)

    def layers(self) -> EventLayers:
        own = [int(each.module.split(".")[2]) if "layers" in each.module else None for each in self.allocations]
        return EventLayers(self.at_tick, own)


def play(layers: int, size: Callable[[int], int] = lambda layer: 1000) -> Writer:
    """Forward keeps one block for each layer and frees the scratch block of the layer before. Backward frees the kept
    blocks from the last layer to the first. The optimizer, in which no module is running, goes up once. A table outside
    the layers grows by 4 bytes for each layer."""
    run = Writer()
    run.mark("forward")
    table = run.allocate(100 + 4 * layers, OUTSIDE)
    kept, scratch = [], None
    for layer in range(layers):
        kept.append(run.allocate(size(layer), layer))
        if scratch is not None:
            run.free(scratch, layer)
        scratch = run.allocate(64, layer, "scratch")
    assert scratch is not None
    run.free(scratch, OUTSIDE)
    run.mark("backward")
    gradients = {}
    for layer in reversed(range(layers)):
        gradients[layer] = run.allocate(500, layer, "mm")
        run.free(kept[layer], layer)
    run.mark("optimizer")
    for layer in range(layers):
        run.allocate(300, layer, "zeros", inside=False)
        run.free(gradients[layer], None)
    run.free(table, None)
    return run


def test_a_ledger_of_five_layers_becomes_that_of_nine():
    short, whole = play(5), play(9).ledger()
    repetition = repetition_of(5, 4)
    sections = find_sections(short.ledger(), short.layers(), repetition)
    growth = growing_sizes(short.ledger(), sections, repetition, play(4).ledger())
    assert growth == {0: 4}  # the table, 4 bytes a layer
    unfolded = Unfolding(short.ledger(), sections, repetition, 4, growth).make()
    assert unfolded.allocations == whole.allocations
    assert (unfolded.marks, unfolded.ticks) == (whole.marks, whole.ticks)
    assert unfolded.peak() == whole.peak()


def test_passes_go_up_down_and_up():
    short = play(5)
    items = find_sections(short.ledger(), short.layers(), repetition_of(5, 4)).items
    assert [each.direction for each in items if isinstance(each, LayerPass)] == [1, -1, 1]
    assert (
        sum(len(each.events) for each in items if isinstance(each, Once))
        + sum(len(period) for each in items if isinstance(each, LayerPass) for period in each.periods)
        == short.tick
    )


def test_a_layer_of_another_size_is_not_folded():
    short = play(5, lambda layer: 1000 + (layer == 2))
    with pytest.raises(CannotFold, match="in one period is"):
        find_sections(short.ledger(), short.layers(), repetition_of(5, 4))


def test_a_size_that_depends_on_depth_inside_layers_is_not_folded():
    """All layers of the short model are equal, and so are those of the shorter one. Only the comparison of the two shows
    the difference."""
    short, shorter = play(5, lambda layer: 5000), play(4, lambda layer: 4000)
    repetition = repetition_of(5, 4)
    sections = find_sections(short.ledger(), short.layers(), repetition)
    with pytest.raises(CannotFold, match="depends on the number of layers"):
        growing_sizes(short.ledger(), sections, repetition, shorter.ledger())


def test_a_layer_that_frees_an_allocation_of_no_layer_is_not_folded():
    short = play(5)
    victim = next(number for number, each in enumerate(short.allocations) if each.nbytes == 120)
    last = short.allocations[victim].freed_tick
    other = next(number for number, each in enumerate(short.allocations) if each.op == "mm" and ".2." in each.module)
    at = short.allocations[other].freed_tick
    short.allocations[victim] = replace(short.allocations[victim], freed_tick=at)
    short.allocations[other] = replace(short.allocations[other], freed_tick=last)
    with pytest.raises(CannotFold):
        find_sections(short.ledger(), short.layers(), repetition_of(5, 4))


def test_two_events_at_one_tick_are_refused():
    ledger = Ledger(
        allocations=(Allocation(nbytes=1, allocated_tick=1), Allocation(nbytes=1, allocated_tick=1)), marks=(), ticks=3
    )
    with pytest.raises(CannotFold, match="there are two events at tick 1"):
        find_sections(ledger, EventLayers({}, [None, None]), repetition_of(5, 4))


def test_an_allocation_that_is_never_freed_is_repeated_in_every_layer():
    short, repetition = play(5), repetition_of(5, 4)
    sections = find_sections(short.ledger(), short.layers(), repetition)
    unfolded = Unfolding(short.ledger(), sections, repetition, 4).make()
    assert sum(each.freed_tick == NEVER for each in unfolded.allocations) == 9  # one optimizer state a layer


def tensor(name: str) -> TensorFact:
    return TensorFact(
        name=f"{name}.weight",
        module=name,
        kind="parameter",
        role="weight",
        dtype="bfloat16",
        trainable=True,
        elements=6,
        logical_elements=6,
        nbytes=12,
    )


def facts_of(layers: int) -> ModelFacts:
    names = ["model.embed", *(f"model.layers.{layer}.mlp" for layer in range(layers)), "model.head"]
    return ModelFacts(
        name="m",
        model_type="t",
        class_name="C",
        config_source="s",
        tensors=tuple(tensor(name) for name in names),
        modules=tuple(ModuleFact(name=name, class_name="M") for name in ["", *names]),
    )


def test_facts_of_five_layers_become_those_of_nine():
    assert unfold_facts(facts_of(5), repetition_of(5, 4)) == facts_of(9)


def test_facts_of_five_layers_become_those_of_four():
    assert unfold_facts(facts_of(5), repetition_of(5, -1)) == facts_of(4)


def test_names_with_an_adapter_around_are_in_the_same_layers():
    repetition = repetition_of(5, 4)
    assert repetition.layer_of("base_model.model.model.layers.3.mlp.up_proj.lora_A.default") == 3
    assert repetition.layer_of("model.layers.3") == 3
    assert repetition.layer_of("vision.model.layers.3") is None
    assert repetition.layer_of("model.layers") is None
    assert repetition.renamed("model.layers.3.mlp.3.x", 11) == "model.layers.11.mlp.3.x"
    assert repetition.kept == [0, 1, 2, 3, 8]
    assert [repetition.represents(f"model.layers.{n}.x") for n in range(5)] == [1, 1, 5, 1, 1]
