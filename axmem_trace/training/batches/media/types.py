"""The arguments and the result of a family's rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

SEPARATOR = -1
"""In a span: a special token (tile separator, begin of image, line break) that is not a placeholder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One image, or one piece of audio, of a model's batch."""

    config: Any
    """The model's transformers configuration."""
    rows: int
    per_row: int
    """The number of images in a row; all have the same size."""
    height: int = 0
    width: int = 0
    """Pixels of the image that the processor gets; 0: the family's default."""
    seconds: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    """`processor_kwargs`: they override the processor's own settings."""

    @property
    def vision(self) -> Any:
        """The tower's configuration."""
        return self.config.vision_config

    @property
    def total(self) -> int:
        """Images in the batch."""
        return self.rows * self.per_row

    def option(self, name: str, default: Any) -> Any:
        """The setting in `processor_kwargs`, or the default."""
        value = self.options.get(name)
        return default if value is None else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """The processor's result for one image or one piece of audio."""

    span: tuple[int, ...]
    """Its token ids in a row: placeholders, and `SEPARATOR` for any other token."""
    inputs: dict[str, torch.Tensor]
    """The tensors of the batch for all rows, without `input_ids`."""
    placeholder: int
    """The token whose embeddings are replaced by the tower's outputs."""
    token_types: str = ""
    """Name of the input that is 1 at placeholders and 0 elsewhere; empty: there is none."""
    num_true: dict[tuple[int, ...], int] = field(default_factory=dict)
    """How many elements are true in masks that the model derives from pixels or positions, by shape."""
    rule: str
    """How the number is calculated, with its source."""
    height: int = 0
    width: int = 0

    @property
    def num_tokens(self) -> int:
        """The number of placeholders."""
        return self.span.count(self.placeholder)


def pixels(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of this shape that needs no memory. Its values do not matter, but they are not zero."""
    return torch.ones((), dtype=dtype).expand(shape)


def image_token(config: Any) -> int:
    """The placeholder's id; families call it `image_token_id` or `image_token_index`."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    raise AttributeError(f"{type(config).__name__} names no image token")


def side_of(value: Any) -> int:
    """One side of a square, which is given as a number, a pair, or a mapping of `height` and `width`."""
    if isinstance(value, Mapping):
        return int(value.get("height") or value.get("longest_edge") or value.get("shortest_edge") or 0)
    return int(value[0]) if isinstance(value, (list, tuple)) else int(value)
