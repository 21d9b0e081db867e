"""GRPO and GDPO: completions are generated, scored and trained on.

Source: TRL 1.14.1 `trainer/grpo_trainer.py` `_prepare_inputs`, `_generate_and_score_completions`, `_full_logits_logps`,
`_chunked_logps`, `_compute_loss`.

One generation is for `steps_per_generation` micro-batches of b rows, so n = b x steps_per_generation rows are generated
at once. Then the old policy and the reference score them in chunks of b rows. The bytes for each element of a chunk's
logits, b x (C + 1) x V, are: 2 + 4 of the chunk itself, and 4 of the chunk before, to which a variable still refers:
**10**. A training pass has 2 + 4 = **6** in forward; its backward begins with 4 and reaches 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from axmem_trace.kernels.losses.log_probabilities import choose_log_probabilities
from axmem_trace.models.built import BuiltModel, unwrapped
from axmem_trace.models.reward_models import reward_name
from axmem_trace.recipe.objective import Rollouts
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.objectives.policy_losses import policy_loss
from axmem_trace.training.objectives.preference import Preference
from axmem_trace.training.objectives.scoring import score_tiles
from axmem_trace.training.prepared import autocast, prepared_forward, through_wrapper
from axmem_trace.training.rollouts import generate_completions

MAX_CHUNKS = 2
"""From the second chunk on, the logits of the chunk before are alive; later chunks only repeat this."""


class GroupRelative(Preference):
    """`rl: grpo` and `rl: gdpo`. They differ only in the calculation of advantages from rewards, which are numbers on
    the host."""

    old_policy_chunk = 1
    """The number of micro-batches that the old policy scores together."""

    def __init__(self, recipe: Recipe, built: BuiltModel, recorder: Recorder) -> None:
        super().__init__(recipe, built)
        assert self.settings.rollouts is not None
        self.recipe, self.recorder, self.rollouts = recipe, recorder, self.settings.rollouts
        self.helpers = choose_log_probabilities(self.settings)
        self.model = built.module
        self.reward_models = {reward_name(number): model for number, model in enumerate(built.reward_models)}
        self._buffer: list[Inputs] = []
        self._micro_steps = 0

    def batches(self, recipe: Recipe) -> Sequence[Batch]:
        """Empty batches: the data loader returns text, so nothing is on the GPU."""
        return [Batch({})] * recipe.batch.gradient_accumulation_steps

    def evaluation_batch(self, recipe: Recipe) -> Batch:
        """An empty batch: evaluation gets text too."""
        return Batch({})

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[Tensor, Any]:
        """The loss. If it is time for a new generation, completions are generated first."""
        given = self.next_inputs(run_model)
        return self.loss_of_completions(run_model, given), None

    def next_inputs(self, run_model: RunModel) -> Inputs:
        """The micro-batch to train on: a slice of the generated rows, which stay on the GPU until the next generation.
        Evaluation generates for each batch."""
        if not self.model.training:
            return self._generate(run_model, self.recipe.evaluation.rows, 1)[0]
        served = self.rollouts.steps_per_generation
        if self._micro_steps % (served * self.rollouts.iterations) == 0:
            self._buffer = self._generate(run_model, served * self.recipe.batch.rows, served)
        given = self._buffer[self._micro_steps % served]
        self._micro_steps += 1
        return given

    def loss_of_completions(self, run_model: RunModel, given: Inputs) -> Tensor:
        """The loss of generated rows, a scalar."""
        if self.redirects:
            loss: Tensor = through_wrapper(run_model, self.model, lambda: self._compute_loss(self.model, given))
            return loss
        return self._compute_loss(run_model, given)

    def _compute_loss(self, run_model: RunModel, given: Inputs) -> Tensor:
        ids = torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1)
        attention_mask = torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1)
        values, entropies, router_loss = self._score(run_model, ids, attention_mask, entropy=True)
        assert entropies is not None
        loss = policy_loss(given, values, entropies, self.settings, training=self.model.training)
        if router_loss is not None:
            loss = loss + self.router_loss * router_loss
        return loss

    def extra_models(self) -> dict[str, Any]:
        """The reference, and the models that reward completions."""
        return {**super().extra_models(), **self.reward_models}

    # -- rollouts -----------------------------------------------------------------------------------------------------

    def _generate(self, run_model: RunModel, rows: int, parts: int) -> list[Inputs]:
        """Generates and scores rows; returns them in `parts` slices."""
        prompt, completion = self.settings.prompt_tokens, self.settings.completion_tokens
        with self.recorder.interlude("generate"):
            if self.rollouts.engine == "transformers":
                with self.reference.ready_policy():
                    generate_completions(
                        self._as_generated(run_model),
                        self.model,
                        self.recorder,
                        self.rollouts,
                        rows=rows,
                        prompt_tokens=prompt,
                        completion_tokens=completion,
                    )
        with self.recorder.interlude("score"):
            made = self._place_rows(rows, prompt, completion)
            self._score_rollouts(run_model, made)
        if not self.model.training:
            return [made]
        self._after_scoring()
        order = torch.randperm(rows)
        made = {name: value[order] if value.ndim else value for name, value in made.items()}
        size = rows // parts
        return [
            {name: value[part * size : (part + 1) * size] if value.ndim else value for name, value in made.items()}
            for part in range(parts)
        ]

    def _as_generated(self, run_model: RunModel) -> RunModel:
        """The forward for generation. peft's `generate` runs the inner model, which accelerate has not wrapped: without
        autocast and fp32 outputs. FSDP2 has not wrapped it either, so the run fails; the figures are then those of a
        forward through the wrapper (see `config/warn_objective.py`)."""
        if not hasattr(self.model, "get_base_model"):
            return run_model
        sharded: dict[str, RunModel] = {"fsdp1": run_model, "fsdp2": self.model}
        return sharded.get(self.recipe.parallel.engine, unwrapped(self.model))

    def _place_rows(self, rows: int, prompt: int, completion: int) -> Inputs:
        """Ids and masks, int64 [rows, tokens]: each row is full, except for the last completion's end."""
        mask = torch.ones(rows, completion, dtype=torch.int64)
        mask[-1, -1] = 0
        made = {
            "prompt_ids": torch.full((rows, prompt), 10),
            "prompt_mask": torch.ones(rows, prompt, dtype=torch.int64),
            "completion_ids": torch.full((rows, completion), 10),
            "completion_mask": mask,
            "advantages": torch.zeros(rows),
            "num_items_in_batch": torch.tensor(rows * completion),
        }
        if self.rollouts.corrects_sampling:
            made["sampling_per_token_logps"] = torch.zeros(rows, completion)
        return {name: self.recorder.place(value) for name, value in made.items()}

    def _score_rollouts(self, run_model: RunModel, made: Inputs) -> None:
        """Log-probabilities of the old policy and of the reference, added to the rows."""
        ids = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
        attention_mask = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
        rows = self.recipe.batch.rows if self.model.training else self.recipe.evaluation.rows
        with self.reference.ready_policy():
            if self.rollouts.scores_old_policy:
                together = min(rows * self.old_policy_chunk, ids.shape[0])
                made["old_per_token_logps"] = self._score_in_chunks(
                    run_model, self.model, ids, attention_mask, together
                )
            if self.rollouts.corrects_sampling:
                made["importance_sampling_ratio"] = _sampling_weights(made)
        if self.settings.reference.kind != "none":
            with self.reference.ready(run_model) as run_reference:
                model = self.reference.scored
                made["ref_per_token_logps"] = self._score_in_chunks(run_reference, model, ids, attention_mask, rows)
        self._reward(made)

    def _after_scoring(self) -> None:
        """The trainer's work before it trains on the rows: nothing."""

    def _reward(self, made: Inputs) -> None:
        """Each reward model scores all rows at once (`_calculate_rewards`). Prompt and completion are converted to text
        and tokenized again, and padded on the right."""
        if not self.reward_models:
            return
        rows, tokens = made["prompt_ids"].shape[0], self.settings.prompt_tokens + self.settings.completion_tokens
        rewards = self.recorder.place(torch.zeros(rows, len(self.reward_models)))
        for number, model in enumerate(self.reward_models.values()):
            mask = torch.ones(rows, tokens, dtype=torch.int64)
            mask[-1, -1] = 0
            inputs = {"input_ids": torch.full((rows, tokens), 10), "attention_mask": mask}
            with torch.no_grad():
                placed = {name: self.recorder.place(value) for name, value in inputs.items()}
                outputs = prepared_forward(model, self.recipe.precision)(**placed)
                rewards[:, number] = outputs.logits[:, 0]

    def _score_in_chunks(
        self, run_model: RunModel, model: Any, ids: Tensor, attention_mask: Tensor, rows: int
    ) -> Tensor:
        """Returns [n, C]. With tiles, the backbone runs with all rows at once."""
        if self.settings.chunked:
            separate = model is not self.model
            if self.redirects and (self.reference.has_wrapper or not separate):
                scored: Tensor = through_wrapper(
                    run_model, model, lambda: self._score_tiles(model, ids, attention_mask)[0]
                )
                return scored
            return self._score_tiles(model, ids, attention_mask)[0]
        tokens = self.settings.completion_tokens
        found = []
        for start in range(0, min(ids.shape[0], MAX_CHUNKS * rows), rows):
            chunk, mask = ids[start : start + rows], attention_mask[start : start + rows]
            outputs = run_model(input_ids=chunk, attention_mask=mask, logits_to_keep=tokens + 1, use_cache=False)
            logits = self._cool(outputs.logits[:, :-1, :][:, -tokens:, :])
            found.append(
                self.helpers.select(logits, chunk[:, -tokens:], mask[:, -tokens:], temperature=self._temperature)
            )
        left = ids.shape[0] - MAX_CHUNKS * rows
        if left > 0:
            found.append(found[0].new_empty(left, tokens))
        return torch.cat(found, dim=0)

    # -- scoring ------------------------------------------------------------------------------------------------------

    def _score(
        self, run_model: RunModel, ids: Tensor, attention_mask: Tensor, *, entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities and entropies [rows, C] of a micro-batch, and the routers' loss."""
        if self.settings.chunked and not self.router_loss:
            return (*self._score_tiles(self.model, ids, attention_mask, entropy=True), None)
        tokens = self.settings.completion_tokens
        router = {"output_router_logits": True} if self.router_loss else {}
        outputs = run_model(
            input_ids=ids, attention_mask=attention_mask, logits_to_keep=tokens + 1, use_cache=False, **router
        )
        logits = self._cool(outputs.logits[:, :-1, :][:, -tokens:, :])
        values, entropies = self.helpers.select_with_entropy(
            logits,
            ids[:, -tokens:],
            attention_mask[:, -tokens:],
            entropy_trains=self.rollouts.entropy_trains,
            temperature=self._temperature,
        )
        router_loss = torch.stack([outputs.aux_loss]).mean() if self.router_loss else None
        return torch.cat([values], dim=0), torch.cat([entropies], dim=0), router_loss

    def _cool(self, logits: Tensor) -> Tensor:
        """The logits divided by the temperature, if the code that computes log-probabilities does not divide."""
        if self.settings.cooling == "in_place":
            return logits.div_(self.rollouts.temperature)
        return logits / self.rollouts.temperature if self.settings.cooling == "copy" else logits

    @property
    def _temperature(self) -> float:
        """The temperature by which the code that computes log-probabilities divides."""
        return self.rollouts.temperature if self.settings.cooling == "kernel" else 1.0

    def _score_tiles(
        self, model: Any, ids: Tensor, attention_mask: Tensor, *, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        inner, tokens = unwrapped(model), self.settings.completion_tokens
        with autocast(self.recipe.precision):
            outputs = inner.base_model(input_ids=ids, attention_mask=attention_mask, use_cache=False)
        hidden = outputs.last_hidden_state[:, :-1][:, -tokens:]
        kept = attention_mask[:, -tokens:].bool()
        values, entropies = score_tiles(
            inner, hidden[kept], ids[:, -tokens:][kept], self.recipe.precision, self.rollouts.temperature
        )
        spread = values.new_zeros(kept.shape).masked_scatter(kept, values)
        return spread, entropies.new_zeros(kept.shape).masked_scatter(kept, entropies) if entropy else None


def _sampling_weights(made: Inputs) -> Tensor:
    """The ratio of the engine's and the policy's probabilities, [n, C]: TRL's correction of vLLM's samples."""
    difference = (made["old_per_token_logps"] - made["sampling_per_token_logps"]) * made["completion_mask"]
    difference = torch.nan_to_num(difference, nan=0.0)
    return torch.clamp(torch.exp(difference), max=2.0)


def num_generated(recipe: Recipe) -> int:
    """The number of rows of one generation on one GPU."""
    rollouts = recipe.objective.rollouts or Rollouts()
    return recipe.batch.rows * rollouts.steps_per_generation
