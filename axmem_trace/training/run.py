"""The run, in the order of the Hugging Face Trainer: evaluation, then optimizer steps. Everything is recorded.

The order of calls, and how long each variable keeps a tensor alive, are those of transformers 5 `trainer.py`
(`_inner_training_loop`, `training_step`, `compute_loss`, `evaluation_loop`) and accelerate `accelerator.py`
(`prepare_model`, `backward`, `clip_grad_norm_`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from axmem_trace.ledger.windows import BatchWindows, Window
from axmem_trace.models.built import BuiltModel
from axmem_trace.models.device_map import is_on_host
from axmem_trace.notes import Note
from axmem_trace.parallel.rank_facts import local_tensors
from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.parallel.wrapped_names import plain_name
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.batches.batch import Inputs, place_batch, place_number
from axmem_trace.training.callbacks import GradientAverage, restart_relora
from axmem_trace.training.evaluation import evaluate
from axmem_trace.training.objectives import Objective, choose_objective
from axmem_trace.training.offloading import StepContext
from axmem_trace.training.optimizers.clipping import GradientScaler, clip_gradients
from axmem_trace.training.optimizers.traced import TracedOptimizer
from axmem_trace.training.other_steps import KeepsNorm, OtherSteps
from axmem_trace.training.prepared import prepared_forward

NUM_STEPS = 2
"""In the first step, the optimizer has no state during forward. The second step is like all later steps."""
MAX_MICRO_BATCHES = 2
"""From the second micro-batch on, gradients exist; later micro-batches only repeat it."""
MAX_UNSYNCED_MICRO_BATCHES = 3
"""The number if only the last micro-batch reduces gradients across ranks: the first, one that adds gradients, and the
last."""


@dataclass(frozen=True, slots=True)
class _Passes:
    """Forward and backward passes in the record: the first and last tick, and the tick at which each gradient was
    allocated."""

    start: int
    end: int
    gradients: dict[int, int]


@dataclass(slots=True)
class _TrainerVariables:
    """Variables of `Trainer._inner_training_loop` and the functions that it calls. Each keeps its tensors until it is
    assigned again."""

    batch_samples: list[Inputs] = field(default_factory=list)
    num_items_in_batch: torch.Tensor | None = None
    tr_loss_step: torch.Tensor | None = None
    outputs: Any = None
    """The outputs of the last pass, if the loop keeps them (`recipe.loss.holds_outputs`)."""
    grad_norm: Any = None


class Run:
    """One training run of a built model. `record()` runs and records it.

    With `repeat`, the passes of the second step are not run: those of the first step are repeated in the record,
    because forward and backward do not depend on the optimizer's states. They are run again if hooks update parameters
    inside backward, or if layers or selected outputs are moved to the host and back. Offloaded activations have all
    come back when a pass ends.

    Attributes:
        windows: the parts that depend on the batches; known when the run has been recorded.
        batch_notes: the notes that were made in these parts, or earlier.
        other_steps: the optimizer's steps of other ranks; None: they are not recorded.
    """

    def __init__(
        self,
        recipe: Recipe,
        built: BuiltModel,
        optimizer: TracedOptimizer,
        recorder: Recorder,
        *,
        offloading: Callable[[], AbstractContextManager[StepContext]] = lambda: nullcontext(nullcontext),
        objective: Objective | None = None,
        repeat: bool = True,
        rank_model: RankModel | None = None,
    ) -> None:
        if rank_model is not None and rank_model.reference is not None:
            built = replace(built, reference_forward=rank_model.reference)
        self.recipe, self.built, self.optimizer, self.recorder = recipe, built, optimizer, recorder
        self.model: Any = built.module
        self._rank_model = rank_model
        self._owners = {
            id(parameter): plain_name(name).rpartition(".")[0] for name, parameter in self.model.named_parameters()
        }
        self.objective = objective or choose_objective(recipe, built, recorder)
        self._average = GradientAverage(recorder) if recipe.optimizer.grokfast else None
        self.scaler = GradientScaler() if recipe.precision.grad_scaler else None
        self._variables = _TrainerVariables()
        self._passes: _Passes | None = None
        self._first_call: int | None = None
        """The tick of the model's first forward pass in training."""
        self._offloading = offloading
        self._training_step: StepContext = nullcontext
        checkpointing = recipe.checkpointing
        moves = checkpointing.layer_offloading or checkpointing.selective_offload
        moves = moves or any(map(is_on_host, self.model.parameters()))
        differ = recipe.loss.holds_outputs or recipe.allocator.empty_cache_steps > 1
        engine_differs = rank_model is not None and rank_model.before_repeat is None
        self._may_repeat = repeat and not (optimizer.hooked or moves or differ or engine_differs)
        self.batch_notes: set[Note] = set()
        self.other_steps: OtherSteps | None = None
        if rank_model is not None and rank_model.other_ranks:
            self.other_steps = OtherSteps(recipe, self.model, rank_model, recorder)
        self._evaluations: list[Window] = []
        self._placing = self._first_passes = Window(0, 0)

    def record(self, progress: Callable[[str], None] = lambda stage: None) -> None:
        """Loads, evaluates if the run evaluates first, and runs `NUM_STEPS` optimizer steps."""
        self._register_model()
        self._register_extra_models()
        self._register_optimizer_state(self.optimizer)
        with self._offloading() as self._training_step:
            self._record_phases(progress)

    def record_batches(self) -> None:
        """Runs only the parts that depend on the batches: evaluation, and the first micro-batch. The model is
        registered already."""
        evaluation = self.recipe.evaluation
        with self._offloading() as self._training_step:
            if evaluation.enabled and evaluation.before_training:
                self._evaluate()
            self._place_batches(1)
            self._accumulate(1, 1)
            self.optimizer.zero_grad()
            if evaluation.enabled and not evaluation.before_training:
                self._evaluate()

    @property
    def is_reusable(self) -> bool:
        """Whether later micro-batches and steps have the same events as the first micro-batch."""
        return self._may_repeat and self._rank_model is None

    @property
    def windows(self) -> BatchWindows:
        """See the class."""
        return BatchWindows(self._placing, self._first_passes, tuple(self._evaluations))

    def _record_phases(self, progress: Callable[[str], None]) -> None:
        evaluation = self.recipe.evaluation
        if evaluation.enabled and evaluation.before_training:
            self._collect(0)
            progress("tracing evaluation")
            self._evaluate()
        self._collect(0)
        for step in range(1, NUM_STEPS + 1):
            progress(f"tracing step {step} of {NUM_STEPS}")
            self._step(step)
            self._collect(step)
        if evaluation.enabled and not evaluation.before_training:
            self._collect(0)
            progress("tracing evaluation")
            self._evaluate()
        if self._rank_model is not None and self._rank_model.save is not None:
            self.recorder.mark("save", 0)
            self._rank_model.save()
        if self.recipe.adapter.relora_steps:
            self.recorder.mark("optimizer", NUM_STEPS)
            restart_relora(self.model, self.optimizer, self.recipe, self.recorder)

    def _evaluate(self) -> None:
        start, before = self.recorder.now, set(self.recorder.notes)
        evaluate(self.recipe, self.model, self.objective, self.run_model, self.recorder)
        self._evaluations.append(Window(start, self.recorder.now))
        self.batch_notes |= set(self.recorder.notes) - before

    # -- loading ------------------------------------------------------------------------------------------------------

    def _register_extra_models(self) -> None:
        for name, model in self.objective.extra_models().items():
            for module_name, module in model.named_modules():
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    self.recorder.register(tensor, role="reference", module=f"{name}.{module_name}".rstrip("."))

    def _register_model(self) -> None:
        tensors = local_tensors(self.model)
        tensors.update((state.name, state.tensor) for state in self.built.state_tensors)
        facts = self._rank_model.facts if self._rank_model is not None else self.built.facts
        for fact in facts.tensors:
            if fact.name in tensors:
                self.recorder.register(tensors[fact.name], role=fact.role, module=fact.module, device=fact.device)
        for shard in self._rank_model.shards if self._rank_model is not None else ():
            self.recorder.register(shard.tensor, role=shard.role, module=shard.module)

    def _register_optimizer_state(self, optimizer: TracedOptimizer) -> None:
        for owner, tensor, device in optimizer.state_tensors():
            module = self._owners.get(id(owner), "") if owner is not None else ""
            self.recorder.register(tensor, role="optimizer", module=module, device=device)

    def _register_gradients(self) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                self.recorder.register(parameter.grad, role="gradient", module=self._owners[id(parameter)])

    # -- one optimizer step -------------------------------------------------------------------------------------------

    def _step(self, step: int) -> None:
        self._place_batches(step)
        if self._passes is None or not self._can_repeat(self._passes):
            self._passes = self._accumulate(step, self._num_micro_batches)
        else:
            self._accumulate_again(self._passes, step)
        self.recorder.mark("optimizer", step)
        self._optimize()

    def _place_batches(self, step: int) -> None:
        batch, variables, start = self.recipe.batch, self._variables, self.recorder.now
        self.recorder.mark("forward", step)
        self.objective.before_step(self.run_model, step)
        with self.recorder.paused():
            batches = self.objective.batches(self.recipe)
        variables.batch_samples = [place_batch(self.recorder, each) for each in batches]
        variables.num_items_in_batch = place_number(self.recorder, batch.rows * batch.row_tokens)
        if step == 1:
            self._placing = Window(start, self.recorder.now)

    def _accumulate(self, step: int, num_micro_batches: int) -> _Passes:
        """Forward and backward of the micro-batches."""
        start = self.recorder.now
        batches = self._variables.batch_samples[:num_micro_batches]
        for micro_batch, inputs in enumerate(batches):
            if micro_batch:
                self.recorder.mark("forward", step, micro_batch)
            with self._syncing(is_last=inputs is batches[-1]), self._training_step():
                loss = self._forward(inputs)
                self._empty_cache(step)
                self.recorder.mark("backward", step, micro_batch)
                self._backward(loss)
            self._variables.tr_loss_step = loss.detach()
            del loss
            self._register_gradients()
            if self.recipe.objective.empties_cache:
                self.recorder.empty_cache()
            self.recorder.finish_streams()  # the Trainer checks for NaN (`logging_nan_inf_filter`)
            if step == 1 and not micro_batch:
                self._first_passes = Window(start, self.recorder.now)
                self.batch_notes |= set(self.recorder.notes)
        self._variables.tr_loss_step = None
        gradients = {
            id(parameter): self.recorder.allocation_tick(parameter.grad)
            for parameter in self.model.parameters()
            if parameter.grad is not None
        }
        return _Passes(start, self.recorder.now, gradients)

    @property
    def _num_micro_batches(self) -> int:
        """The number of micro-batches that differ from each other."""
        unsynced = self._rank_model is not None and not self._syncs_each_batch
        return MAX_UNSYNCED_MICRO_BATCHES if unsynced else MAX_MICRO_BATCHES

    @property
    def _syncs_each_batch(self) -> bool:
        """Whether gradients are reduced after each micro-batch. DeepSpeed decides this itself."""
        has_engine = self._rank_model is not None and self._rank_model.engine is not None
        return self.recipe.parallel.syncs_each_batch and not has_engine

    def _syncing(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """The context of a micro-batch: ranks reduce their gradients after the last micro-batch, or after each one if
        the settings say so (transformers `trainer.py`, `_run_epoch`, `sync_context`)."""
        if self._rank_model is None or is_last or self._syncs_each_batch:
            return nullcontext()
        return self._rank_model.without_sync()

    def _can_repeat(self, passes: _Passes) -> bool:
        """Whether the passes can be repeated. If an engine does something before the first forward pass, it must be the
        first event of the step."""
        return self._may_repeat and (self._rank_model is None or self._first_call == passes.start)

    def _accumulate_again(self, passes: _Passes, step: int) -> None:
        """Repeats the passes of the first step in the record. Only the optimizer's states are new, and the passes do
        not use them."""
        if self._rank_model is not None and self._rank_model.before_repeat is not None:
            self._rank_model.before_repeat()
        storages = self.recorder.repeat(passes.start, passes.end, step=step)
        with self.recorder.paused(), torch.no_grad():
            for parameter in self.model.parameters():
                tick = passes.gradients.get(id(parameter))
                if tick is None:
                    continue
                gradient = torch.empty_like(parameter)
                if tick in storages:
                    gradient.set_(storages[tick], 0, gradient.shape, gradient.stride())
                parameter.grad = gradient

    def _forward(self, inputs: Inputs) -> torch.Tensor:
        """`Trainer.training_step`: the outputs, including fp32 logits, are dropped when it returns."""
        if self.objective.takes_num_items and self._variables.num_items_in_batch is not None:
            inputs = {**inputs, "num_items_in_batch": self._variables.num_items_in_batch}
        loss, outputs = self.objective.loss(self.run_model, inputs)
        if self.recipe.loss.holds_outputs:
            self._variables.outputs = outputs
        return loss

    def run_model(self, **inputs: Any) -> Any:
        """The model's forward, wrapped by accelerate (`prepare_model`)."""
        call = self._rank_model.call if self._rank_model is not None else self.model
        if self._first_call is None and self.recorder.phase == "forward":
            self._first_call = self.recorder.now
        return prepared_forward(call, self.recipe.precision)(**inputs)

    def _backward(self, loss: torch.Tensor) -> None:
        batch = self.recipe.batch
        if not self.objective.takes_num_items:
            loss = loss / batch.gradient_accumulation_steps
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        if self._rank_model is not None and self._rank_model.engine is not None:
            self._rank_model.engine.backward(loss)
        else:
            loss.backward()
        self.optimizer.after_backward()

    def _optimize(self) -> None:
        if self._rank_model is not None and self._rank_model.engine is not None:
            self._variables.grad_norm = self._rank_model.engine.step()
            return
        with self.recorder.on_host() if self.optimizer.on_host else nullcontext():
            self._step_optimizer(self.optimizer.parameters)

    def _step_optimizer(self, parameters: list[nn.Parameter]) -> None:
        if self.scaler is not None:
            self.scaler.unscale(parameters)
        start = self.recorder.now
        self._clip_and_step(self.optimizer, self._variables)
        if self.scaler is not None:
            self.scaler.update()
        if self.optimizer.replaces_parameters:
            self._register_model()
        if self.other_steps is not None:
            self.other_steps.record(start, self._clip_and_step)
        self.optimizer.zero_grad()

    def _clip_and_step(self, optimizer: TracedOptimizer, keeps: KeepsNorm) -> None:
        """`keeps` has the last step's norm until this step's is known."""
        if not optimizer.releases_gradients:
            trainable = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
            clip = (self._rank_model.clip if self._rank_model is not None else None) or clip_gradients
            keeps.grad_norm = clip(trainable, self.recipe.optimizer.max_grad_norm)
        if self._average is not None:
            self._average.amplify(self.model)
        optimizer.step()
        self._register_optimizer_state(optimizer)

    def _empty_cache(self, step: int) -> None:
        every = self.recipe.allocator.empty_cache_steps
        if every and (step - 1) % every == 0:
            self.recorder.empty_cache()

    def _collect(self, step: int) -> None:
        """axolotl's `GCCallback` (utils/callbacks/__init__.py); `step` 0 means before training, before its first step,
        and before evaluation."""
        every = self.recipe.allocator.collect_steps
        if every and step % max(every, 1) == 0 and (every > 0 or not step):
            self.recorder.empty_cache()
