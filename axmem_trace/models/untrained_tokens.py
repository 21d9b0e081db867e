"""`fix_untrained_tokens`: before axolotl searches for untrained rows, it replaces embedding and head by new parameters.

Source: axolotl `train.py` `handle_untrained_tokens_fix`; axolotl-contribs-lgpl 0.0.7 `unsloth.py`
`get_embedding_mean`. A new `torch.nn.Parameter` trains, even if the old one was frozen.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe

_KEY = "fix_untrained_tokens"


def fix_untrained_tokens(model: Any, recipe: Recipe, notes: Notes) -> None:
    """Replace the weights of embedding and head by new parameters with the same memory.

    With an adapter both become trainable. Tied weights become two parameters, each with its own gradient and optimizer
    states. The memory of the repaired rows is not counted, because they are few.

    Raises:
        ConfigError: peft has wrapped one of the two, so that torch refuses the new parameter; or there is no head.
    """
    if not recipe.model.fix_untrained_tokens:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise _stops("the model has no output embedding", recipe)
    trained_before = sum(each.requires_grad for each in {id(m.weight): m.weight for m in (embedding, head)}.values())
    width = min(embedding.weight.shape[1], head.weight.shape[1])
    with torch.no_grad():
        for module in (embedding, head):
            try:
                module.weight = torch.nn.Parameter(module.weight[:, :width])
            except (KeyError, RuntimeError) as error:
                raise _stops(str(error), recipe) from error
    if trained_before < 2:
        text = (
            "`fix_untrained_tokens` replaces embedding and head by new parameters, which train: each has its own gradient "
            "and optimizer states, even with an adapter or tied weights"
        )
        nbytes = embedding.weight.nbytes + head.weight.nbytes
        notes.append(Note(kind="warning", key=_KEY, text=text, bytes=nbytes))


def _stops(why: str, recipe: Recipe) -> ConfigError:
    return ConfigError(
        problem="axolotl fails: it can't replace the parameters of embedding and head",
        key=_KEY,
        details=(why,),
        remedy="remove fix_untrained_tokens, or exclude embedding and head from the adapter",
    )
