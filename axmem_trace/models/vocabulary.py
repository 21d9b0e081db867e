"""New rows of the embedding and the head for added tokens."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from axmem_trace.models.skeleton.quiet import errors_alone
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced

TOKENIZER_FILE = "tokenizer.json"


def resize_vocabulary(model: Any, recipe: Recipe, notes: Notes) -> None:
    """Resize embedding and head to the tokenizer's length, as axolotl does. They only shrink with `shrink_embeddings`.

    The tokenizer's length is read from a `tokenizer.json` in the directory of the base model's configuration. Without this
    file the tokenizer is assumed to use all rows of the embedding, so each added token is a new row.

    Source: axolotl `loaders/model.py` `_resize_token_embeddings`.
    """
    options = recipe.model
    if not (options.added_tokens or options.resize_embeddings_to_32x or options.shrink_embeddings):
        return
    rows = model.get_input_embeddings().num_embeddings
    known = count_tokenizer_tokens(options.base.directory)
    wanted = (known or rows) + options.added_tokens
    if options.resize_embeddings_to_32x:
        wanted = math.ceil(wanted / 32) * 32
    if known == 0:
        _note_assumption(model, recipe, rows, notes)
    if wanted > rows or (wanted < rows and options.shrink_embeddings):
        device = model.get_input_embeddings().weight.device
        drawn = _drawn_on_meta(model) if device.type == "meta" else nullcontext()
        with (
            torch.device(device),
            drawn,
            errors_alone("transformers.modeling_utils"),
        ):  # it logs how it initialises new rows
            model.resize_token_embeddings(wanted, mean_resizing=options.mean_resizing)


def _drawn_on_meta(model: Any) -> AbstractContextManager[Any]:
    """Replaces transformers' function, which checks values of the covariance twice: meta tensors have no values."""
    return replaced(type(model), "_init_added_embeddings_weights_with_mean", _draw_rows)


def _draw_rows(model: Any, old_embeddings: Any, new_embeddings: Any, old_num_tokens: int, added: int) -> None:
    """transformers 5.16 `modeling_utils.py` `_init_added_embeddings_weights_with_mean`, for a covariance that is positive
    definite (torch 2.13 `distributions/constraints.py` `_PositiveDefinite`; `multivariate_normal.py` without its own check
    of the arguments, as in a run on the CPU)."""
    old_weight = old_embeddings.weight.data.to(torch.float32)
    mean = torch.mean(old_weight, dim=0)
    centered = old_weight - mean
    covariance = centered.T @ centered / old_num_tokens
    _check_positive_definite(1e-9 * covariance)
    given = 1e-9 * covariance
    triangle = torch.linalg.cholesky(given)
    noise = torch.randn(added, mean.shape[0], device=mean.device)
    rows = mean + torch.matmul(triangle, noise.unsqueeze(-1)).squeeze(-1)
    new_embeddings.weight.data[-added:, :] = rows.to(old_embeddings.weight.dtype)


def _check_positive_definite(matrix: torch.Tensor) -> None:
    """The operators of the constraint's check: the matrix is symmetric to 1e-6, and has a Cholesky decomposition."""
    torch.isclose(matrix, matrix.mT, atol=1e-6).all(-2).all(-1)
    torch.linalg.cholesky_ex(matrix).info.eq(0)


def count_tokenizer_tokens(directory: str) -> int:
    """`len(tokenizer)` from a local `tokenizer.json`: the number of distinct tokens in its vocabulary and added tokens; 0
    without the file."""
    path = Path(directory or ".") / TOKENIZER_FILE
    if not directory or not path.is_file():
        return 0
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        tokens = set(vocabulary) if isinstance(vocabulary, dict) else {entry[0] for entry in vocabulary}
        tokens.update(token["content"] for token in content.get("added_tokens", []))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0
    return len(tokens)


def _note_assumption(model: Any, recipe: Recipe, rows: int, notes: Notes) -> None:
    options = recipe.model
    if options.shrink_embeddings:
        text = "the tokenizer's length is not known here, so the embeddings are not shrunk: all rows are counted"
        notes.append(Note(kind="not_modelled", key="shrink_embeddings", text=text, direction="less"))
    if not options.added_tokens:
        return
    weight = model.get_input_embeddings().weight
    row_bytes = weight.shape[-1] * weight.element_size()
    text = (
        f"{options.added_tokens} added tokens are counted as new rows after the {rows} of the vocabulary. The "
        "tokenizer's length is not known here; if the vocabulary is padded, the run uses the free rows first"
    )
    notes.append(Note(kind="assumed", key="special_tokens", text=text, bytes=options.added_tokens * row_bytes))
