"""EBFT, structured: GRPO with a reward that measures how similar a completion's features are to those of the true
answer.

Source: axolotl 0.21 and 0.19 `core/trainers/ebft/trainer.py` (`EBFTMixin`), `core/trainers/ebft/rewards.py`.

The features are hidden states of a frozen network: the policy without its adapters, or a copy of the whole policy. It
runs on all generated rows at once, and then on the true answers. The bytes for each element of the hidden states (rows
x tokens x H) in bf16 are: 2 (L + 1) for those of all layers, 2 x 3 for the joined states of the chosen layers, and 2 x
3 for another copy of them. With adapters, axolotl calls the model with its head: the logits of all positions, 2 x rows
x tokens x V, are computed but never read.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axmem_trace.models.built import BuiltModel, unwrapped
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.batches.batch import Inputs
from axmem_trace.training.objectives.asynchronous import AsynchronousGroupRelative
from axmem_trace.training.objectives.group_relative import GroupRelative

MAX_TOKENS = 2048
"""Rows are cut at this length: the trainer's arguments have neither `max_length` nor `max_seq_length`."""


class EnergyBased(GroupRelative):
    """`rl: ebft` with `mode: structured`."""

    def __init__(self, recipe: Recipe, built: BuiltModel, recorder: Recorder) -> None:
        super().__init__(recipe, built, recorder)
        assert self.settings.features is not None
        self.features, self.network = self.settings.features, built.feature_network

    def extra_models(self) -> dict[str, Any]:
        """The feature network too, if it is a separate model."""
        own = {} if self.network is None else {"feature_network": self.network}
        return {**super().extra_models(), **own}

    @torch.no_grad()
    def _reward(self, made: Inputs) -> None:
        """`_feature_matching_reward`: tensors in local variables are alive until it returns."""
        generations, rows = self.rollouts.num_generations, made["prompt_ids"].shape[0]
        answers = max(1, rows // generations)
        ids, mask = self._rows(rows)
        lengths = self.recorder.place(torch.full((rows,), self.settings.prompt_tokens))
        answer_ids, answer_mask = self._rows(answers)
        answer_lengths = self.recorder.place(torch.full((answers,), self.settings.prompt_tokens))
        model: Any = self.model if self.network is None else self.network
        training = model.training
        with self._as_features_are_made():
            model.eval()
            hidden = self._hidden_states(model, ids, mask)
            answer_hidden = self._hidden_states(model, answer_ids, answer_mask)
            model.train(training)
        embedding = self._pool(hidden, mask, lengths)
        answer = self._pool(answer_hidden, answer_mask, answer_lengths)
        if self.features.whitens and rows > 1:
            embedding, answer = _whiten(embedding, answer, generations)
        else:
            embedding, answer = (F.normalize(each, p=2, dim=-1) for each in (embedding, answer))
        repeated = answer.repeat_interleave(generations, dim=0)[:rows]
        F.cosine_similarity(embedding, repeated, dim=-1) * 2

    def _as_features_are_made(self) -> AbstractContextManager[Any]:
        """A context with the adapters off, if the network is the policy itself."""
        policy: Any = self.model
        return nullcontext() if self.network is not None else policy.disable_adapter()

    def _rows(self, rows: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of prompts with completions, padded on the right."""
        tokens = min(self.settings.prompt_tokens + self.settings.completion_tokens, MAX_TOKENS)
        mask = torch.ones(rows, tokens, dtype=torch.int64)
        return self.recorder.place(torch.full((rows, tokens), 10)), self.recorder.place(mask)

    def _hidden_states(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """[rows, tokens, chosen layers x H] (`extract_hidden_states`). `model.model` is the backbone of a plain model.
        In a model with adapters, it is the whole inner model."""
        forward = unwrapped(model) if self.network is None else getattr(model, "model", model)
        outputs = forward(ids, attention_mask=mask, output_hidden_states=True, return_dict=True)
        layers = len(outputs.hidden_states) - 1
        chosen = [outputs.hidden_states[int(share * layers)] for share in self.features.layers]
        parts = [torch.cat(chosen, dim=-1)]
        return torch.cat(parts, dim=0)

    def _pool(self, hidden: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """[rows, D] (`apply_embed_method`)."""
        method = self.features.embedding
        if method in ("mean_pooling", "completion_mean"):
            kept = mask.bool()
            if method == "completion_mean":
                kept = (torch.arange(mask.shape[1], device=mask.device).unsqueeze(0) >= lengths.unsqueeze(1)) & kept
            weights = kept.unsqueeze(-1).float()
            return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        last = mask.sum(dim=1).long() - 1
        if method == "concat":
            return torch.cat([hidden[rows, last // 4], hidden[rows, last // 2], hidden[rows, 3 * last // 4]], dim=-1)
        return hidden[rows, last]


class AsynchronousEnergyBased(EnergyBased, AsynchronousGroupRelative):
    """The same in axolotl's asynchronous trainer."""


def _whiten(embedding: Tensor, answer: Tensor, generations: int) -> tuple[Tensor, Tensor]:
    """Makes a matrix [D, D] in fp32 for each prompt, one after the other (`whiten_embeddings_batched`). The
    decomposition itself uses D x generations numbers."""
    first, second = [], []
    for number, group in enumerate(embedding.split(generations)):
        wide, true = group.float(), answer[number : number + 1].float()
        left = torch.empty_like(wide.t())
        matrix = (left * left[0]) @ left.t()
        first.append((wide @ matrix).to(embedding.dtype))
        second.append((true @ matrix).to(answer.dtype))
    return torch.cat(first, dim=0), torch.cat(second, dim=0)
