"""DPO's losses, with a few numbers for each pair of texts. Source: TRL 1.14.1 `trainer/dpo_trainer.py` `_compute_loss`.

Each loss uses a few vectors with one number for each pair. Only `sft` uses logits; it is not in this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pairs:
    """The inputs of the losses; every tensor has shape [pairs]."""

    chosen: Tensor
    """Log-probability of the chosen text under the policy, minus that under the reference."""
    rejected: Tensor
    delta: Tensor
    """`chosen - rejected`."""
    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    completion_mask: Tensor
    """[2 x pairs, tokens]."""
    beta: float
    smoothing: float

    def averages(self) -> tuple[Tensor, Tensor]:
        """The log-ratios for each token of the completion."""
        chosen_mask, rejected_mask = self.completion_mask.chunk(2, dim=0)
        chosen = self.chosen / chosen_mask.sum(dim=1).clamp(min=1.0)
        return chosen, self.rejected / rejected_mask.sum(dim=1).clamp(min=1.0)


def _sigmoid(pairs: Pairs) -> Tensor:
    return -F.logsigmoid(pairs.beta * pairs.delta)


def _hinge(pairs: Pairs) -> Tensor:
    return torch.relu(1 - pairs.beta * pairs.delta)


def _ipo(pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.averages()
    return (chosen - rejected - 1 / (2 * pairs.beta)) ** 2


def _sigmoid_norm(pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.averages()
    return -F.logsigmoid(pairs.beta * (chosen - rejected))


def _exo_pair(pairs: Pairs) -> Tensor:
    epsilon = torch.tensor(pairs.smoothing, device=pairs.delta.device)
    won, lost = pairs.beta * pairs.delta, -pairs.beta * pairs.delta
    won_part = torch.sigmoid(won) * (F.logsigmoid(won) - torch.log1p(-epsilon))
    return won_part + torch.sigmoid(lost) * (F.logsigmoid(lost) - torch.log(epsilon))


def _nca_pair(pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def _robust(pairs: Pairs) -> Tensor:
    clean = -(1 - pairs.smoothing) * F.logsigmoid(pairs.beta * pairs.delta)
    flipped = -pairs.smoothing * F.logsigmoid(-pairs.beta * pairs.delta)
    return (clean - flipped) / (1 - 2 * pairs.smoothing)


def _bco_pair(pairs: Pairs) -> Tensor:
    return -F.logsigmoid(pairs.beta * pairs.chosen) - F.logsigmoid(-(pairs.beta * pairs.rejected))


def _sppo_hard(pairs: Pairs) -> Tensor:
    return (pairs.chosen - 0.5 / pairs.beta) ** 2 + (pairs.rejected + 0.5 / pairs.beta) ** 2


def _sorted(pairs: Pairs, ours: Tensor, theirs: Tensor) -> Tensor:
    """AOT: the sorted values of both sides are compared."""
    delta = torch.sort(ours, dim=0)[0] - torch.sort(theirs, dim=0)[0]
    kept = -F.logsigmoid(pairs.beta * delta) * (1 - pairs.smoothing)
    return kept - F.logsigmoid(-pairs.beta * delta) * pairs.smoothing


def _aot(pairs: Pairs) -> Tensor:
    ours = pairs.chosen_logps - pairs.rejected_logps
    return _sorted(pairs, ours, pairs.chosen_reference - pairs.rejected_reference)


def _aot_unpaired(pairs: Pairs) -> Tensor:
    return _sorted(pairs, pairs.chosen, pairs.rejected)


def _apo_zero(pairs: Pairs) -> Tensor:
    return 1 - torch.sigmoid(pairs.beta * pairs.chosen) + torch.sigmoid(pairs.beta * pairs.rejected)


def _apo_down(pairs: Pairs) -> Tensor:
    lost = 1 - torch.sigmoid(pairs.beta * (pairs.chosen - pairs.rejected))
    return torch.sigmoid(pairs.beta * pairs.chosen) + lost


def _discopop(pairs: Pairs) -> Tensor:
    logits = pairs.delta * pairs.beta
    share = torch.sigmoid(logits / 0.05)  # `discopop_tau`, which axolotl does not pass
    return -F.logsigmoid(logits) * (1 - share) + torch.exp(-logits) * share


PAIR_LOSSES: Mapping[str, Callable[[Pairs], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "sigmoid_norm": _sigmoid_norm,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
}
"""The losses by TRL's name, without `sft`."""
