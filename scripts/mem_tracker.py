#!/usr/bin/env python3
"""Runs PyTorch's MemTracker under FakeTensorMode on one step of a full fine-tune, for a comparison.

    python scripts/mem_tracker.py CONFIG.yml [KEY=VALUE]...

It prints its peak as JSON. Dtype, rows, tokens, checkpointing, autocast, clipping and AdamW of the step are those of
the configuration. The step runs twice, because the states of the optimizer exist from the second step on. Only this
package's reading of the YAML is used, none of its rules. If FakeTensorMode can't run the step, the script ends with the
library's own error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from axmem_trace.config import read_recipe  # noqa: E402
from axmem_trace.recipe.recipe import Recipe  # noqa: E402


def track(recipe: Recipe) -> int:
    """The peak of all tensors that MemTracker counts, in bytes, over two steps.

    Raises:
        ValueError: the run is not a full fine-tune of a plain model.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    if recipe.adapter.kind != "none" or recipe.quantisation.method != "none":
        raise ValueError("only a full fine-tune of a model that is not quantised is built here")
    with FakeTensorMode():
        model = _build(recipe)
        optimizer = torch.optim.AdamW(model.parameters(), fused=recipe.optimizer.implementation == "fused")
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            _step(recipe, model, optimizer)
            tracker.reset_mod_stats()  # it refuses a second step otherwise
            _step(recipe, model, optimizer)
        return max(sum_of["Total"] for sum_of in tracker.get_tracker_snapshot("peak").values())


def _build(recipe: Recipe) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**recipe.model.base.config)
    dtype = getattr(torch, recipe.precision.load_dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=recipe.attention.kernel)
    model.train()
    model.config.use_cache = False
    if recipe.precision.upcast_before and not recipe.precision.cast_back:
        _upcast(model)
    if recipe.checkpointing.enabled:
        kwargs = {"use_reentrant": recipe.checkpointing.use_reentrant}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return model


def _upcast(model: Any) -> None:
    """Casts norms, routers and embeddings to fp32, like axolotl's `loaders/model.py`
    `_convert_embedding_modules_dtype`."""
    import torch

    made: dict[int, Any] = {}
    for name, module in model.named_modules():
        if "norm" in name or name.endswith((".gate", "embed_tokens", "lm_head")):
            for key, weight in list(module.named_parameters(recurse=False)):  # `.float()` can't swap a fake tensor
                if id(weight) not in made:  # tied weights stay tied; the old ones are kept, so that no id is used twice
                    made[id(weight)] = weight, torch.nn.Parameter(weight.detach().float())
                setattr(module, key, made[id(weight)][1])


def _step(recipe: Recipe, model: Any, optimizer: Any) -> None:
    import torch
    from accelerate.utils.operations import convert_to_fp32

    tokens = torch.zeros(recipe.batch.rows, recipe.batch.row_tokens, dtype=torch.int64)
    dtype = getattr(torch, recipe.precision.autocast_dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=recipe.precision.autocast):
        output = model(input_ids=tokens, labels=tokens)
    if recipe.precision.output_dtype == "float32":
        output = convert_to_fp32(output)
    loss = output["loss"]
    del output  # transformers' `compute_loss` returns only the loss: the logits are freed before backward
    loss.backward()
    if recipe.optimizer.max_grad_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def main() -> int:
    """Prints `{"peak_bytes": …}`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    print(json.dumps({"peak_bytes": track(read_recipe(options.config, overrides=options.settings, hub="never"))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
