"""Asynchronous GRPO: axolotl's own trainer, which uses half-precision logits for scores and training.

Source: axolotl 0.21 and 0.19 `core/trainers/grpo/async_trainer.py` `_get_per_token_logps_and_entropies` (no fp32 copy of
the outputs, an explicit bf16 autocast, `nan_to_num` of the logits, division by the temperature in place),
`_compute_deferred_scores` (the old policy in chunks of four micro-batches), `_prepare_inputs_legacy_async` (the cache is
emptied before training).

The bytes for each element of a micro-batch's logits are: 2 for the bf16 logits and 2 for their copy without NaN.
Backward begins with 2 + 2, because `nan_to_num` keeps its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from axmem_trace.training.objectives.group_relative import GroupRelative
from axmem_trace.training.objectives.objective import RunModel


class AsynchronousGroupRelative(GroupRelative):
    """`rl: grpo` with `trl.async_prefetch` or `trl.use_data_producer`."""

    old_policy_chunk = 4

    def _score_in_chunks(
        self, run_model: RunModel, model: Any, ids: Tensor, attention_mask: Tensor, rows: int
    ) -> Tensor:
        """Returns [n, C]. Only two chunks are run, because later chunks repeat the second."""
        run = min(ids.shape[0], 2 * rows)
        values = self._run_chunks(model, ids[:run], attention_mask[:run], rows)[0]
        left = ids.shape[0] - run
        return torch.cat([values, values.new_empty(left, values.shape[1])], dim=0) if left else values

    def _score(
        self, run_model: RunModel, ids: Tensor, attention_mask: Tensor, *, entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self._run_chunks(self.model, ids, attention_mask, ids.shape[0], entropy=True)

    def _run_chunks(
        self, model: Any, ids: Tensor, attention_mask: Tensor, rows: int, *, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`_get_per_token_logps_and_entropies`: the tensors of a chunk are alive until the variables are assigned in
        the next chunk."""
        tokens = self.settings.completion_tokens
        router = {"output_router_logits": True} if entropy and self.router_loss else {}
        values, entropies = [], []
        outputs: Any = None
        with torch.autocast("cuda", dtype=torch.bfloat16):
            for start in range(0, ids.shape[0], rows):
                part, mask = ids[start : start + rows], attention_mask[start : start + rows]
                outputs = model(
                    input_ids=part, attention_mask=mask, logits_to_keep=tokens + 1, use_cache=False, **router
                )
                logits = outputs.logits
                logits = torch.nan_to_num(logits, nan=0.0)
                logits = logits[:, :-1, :][:, -tokens:, :]
                logits.div_(self.rollouts.temperature)
                labels = part[:, -tokens:]
                values.append(self.helpers.select(logits, labels))
                if entropy:
                    with torch.no_grad():
                        entropies.append(self.helpers.select_with_entropy(logits, labels)[1])
        router_loss = torch.stack([outputs.aux_loss]).mean() if router else None
        return torch.cat(values, dim=0), torch.cat(entropies, dim=0) if entropy else None, router_loss

    def _after_scoring(self) -> None:
        self.recorder.empty_cache()
