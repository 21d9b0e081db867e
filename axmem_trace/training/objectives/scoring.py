"""How a trainer of TRL computes log-probabilities: from logits, or from hidden states in tiles.

Source: TRL 1.14.1 `trainer/dpo_trainer.py` `_get_per_token_logps_and_entropies`, and the code next to it for
`use_liger_kernel: false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from axmem_trace.kernels.losses.log_probabilities import LogProbabilities, choose_log_probabilities
from axmem_trace.kernels.losses.tiled_log_probabilities import TiledLogProbabilities
from axmem_trace.models.built import unwrapped
from axmem_trace.recipe.model import Precision
from axmem_trace.recipe.objective import Objective
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.prepared import autocast


@dataclass(slots=True)
class Scored:
    """The scores of a batch of rows under one model. It keeps the logits alive."""

    values: Tensor
    """Log-probability of each token, fp32 [rows, tokens - 1], zero outside of the completion."""
    entropies: Tensor | None
    outputs: Any
    logits: Tensor | None
    """[rows, tokens - 1, vocabulary]; None if there are none."""


class Scorer(Protocol):
    """A way to score rows."""

    def __call__(
        self, run_model: RunModel, model: Any, call: Mapping[str, Any], mask: Tensor, *, entropy: bool = True
    ) -> Scored:
        """
        Args:
            run_model: the model's forward as accelerate has wrapped it.
            model: the model itself.
            call: the arguments of the forward; `input_ids` [rows, tokens] are scored.
            mask: int64 [rows, tokens], 1 for the tokens of the completion.
            entropy: whether entropies are computed too.
        """
        ...


class LogitScorer:
    """Uses the model's own forward, and its logits of every position."""

    def __init__(self, helpers: LogProbabilities) -> None:
        self.helpers = helpers

    def __call__(
        self, run_model: RunModel, model: Any, call: Mapping[str, Any], mask: Tensor, *, entropy: bool = True
    ) -> Scored:
        """See `Scorer`."""
        outputs = run_model(**call)
        logits = outputs.logits[..., :-1, :]
        labels, mask = call["input_ids"][..., 1:], mask[..., 1:]
        if not entropy:
            return Scored(self.helpers.select(logits, labels, mask), None, outputs, logits)
        values, entropies = self.helpers.select_with_entropy(logits, labels, mask)
        return Scored(values, entropies, outputs, logits)


class TiledScorer:
    """Runs only the backbone, in autocast, and multiplies the head with the hidden states of completions in tiles."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision

    def __call__(
        self, run_model: RunModel, model: Any, call: Mapping[str, Any], mask: Tensor, *, entropy: bool = True
    ) -> Scored:
        """See `Scorer`."""
        inner = unwrapped(model)
        with autocast(self.precision):
            outputs = inner.base_model(**call)
        hidden = outputs.last_hidden_state[:, :-1]
        kept = mask[:, 1:].bool()
        values, entropies = score_tiles(inner, hidden[kept], call["input_ids"][:, 1:][kept], self.precision)
        spread = values.new_zeros(kept.shape).masked_scatter(kept, values)
        spread_entropies = entropies.new_zeros(kept.shape).masked_scatter(kept, entropies)
        return Scored(spread, spread_entropies.detach(), outputs, None)


def score_tiles(
    inner: Any, hidden: Tensor, labels: Tensor, precision: Precision, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies, fp32 [N], from hidden states [N, H] and labels [N], with the model's head."""
    head, text_config = inner.get_output_embeddings(), inner.config.get_text_config()
    softcap = getattr(text_config, "final_logit_softcapping", None)
    scale = getattr(text_config, "logit_scale", None)
    scale = getattr(text_config, "output_multiplier", None) if scale is None else scale
    with autocast(precision):
        values, entropies = TiledLogProbabilities.apply(
            hidden, head.weight, head.bias, labels, temperature, softcap, 1.0 if scale is None else scale
        )
    return values, entropies


def choose_scorer(objective: Objective, precision: Precision) -> Scorer:
    """The one of the recipe."""
    return TiledScorer(precision) if objective.chunked else LogitScorer(choose_log_probabilities(objective))
