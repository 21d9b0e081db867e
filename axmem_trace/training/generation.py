"""Text generated after evaluation: the memory of its longest pass.

Source: axolotl 0.19 `utils/callbacks/__init__.py` `CausalLMBenchEvalCallback`, `utils/generation/sft.py`; transformers
5.16 `generation/utils.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.models.built import unwrapped
from axmem_trace.tracing.recorder import Recorder


@torch.no_grad()
def generate(run_model: Callable[..., Any], model: Any, recorder: Recorder, *, rows: int, tokens: int) -> None:
    """Runs a pass over all tokens of prompt and answer, with a key-value cache. As in `generate`, logits are computed
    only for the last token.

    Args:
        run_model: the model's forward, wrapped by accelerate.
    """
    with recorder.paused():
        ids = torch.ones(rows, tokens, dtype=torch.int64)
    inputs = {"input_ids": recorder.place(ids), "attention_mask": recorder.place(ids)}
    accepted = inspect.signature(unwrapped(model).forward).parameters
    options = {name: value for name, value in (("logits_to_keep", 1), ("use_cache", True)) if name in accepted}
    run_model(**inputs, **options)
