"""Passes the bounds of packed samples to the scans, as axolotl does.

transformers' own modules pass no bounds to the kernels, so state would pass from one sample to the next. axolotl 0.19
replaces their forwards (`monkeypatch/models/*/modeling.py`): each layer computes the bounds from the position ids, and
its kernels keep them.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.site import Site
from axmem_trace.notes import RefusalNote

_BY_INDEX = frozenset({"NemotronHBlock"})
"""Layers of Mamba-2. Their kernels take `seq_idx`, the index of each token's sample
(`monkeypatch/models/mamba_utils.py`)."""
_BY_BOUNDS = frozenset({"Qwen3NextDecoderLayer", "Qwen3_5DecoderLayer", "Qwen3_5MoeDecoderLayer"})
"""Layers of the gated delta rule. Their kernels take `cu_seqlens` (`get_cu_seqlens`)."""
_SCANS = {**dict.fromkeys(_BY_INDEX, "mixer"), **dict.fromkeys(_BY_BOUNDS, "linear_attn")}
"""The layer's class -> the submodule that needs the bounds."""
_CANNOT_PACK = {"falcon_h1": "FalconH1DecoderLayer", "granitemoehybrid": "GraniteMoeHybridDecoderLayer"}
"""Model types that can't be packed -> the class of their layers. axolotl 0.19's patches use names that transformers 5.16
no longer has (`is_fast_path_available`, `GraniteMoeHybridMambaLayer.cuda_kernels_forward`):
`monkeypatch/models/falcon_h1/modeling.py`, `granitemoehybrid/`."""


@dataclass(slots=True)
class PackedSamples:
    """The bounds that the running layer has computed; None if each row is one sample."""

    index: torch.Tensor | None = None
    bounds: torch.Tensor | None = None


def watch_packed_samples(site: Site) -> PackedSamples:
    """Make each layer that axolotl patches for packing store its bounds in the returned object. Its kernels read them."""
    samples = PackedSamples()
    if site.recipe.batch.packed:
        for layer in site.model.modules():
            _watch(site.stack, layer, samples)
        _note_those_that_cannot(site)
    return samples


def _watch(stack: ExitStack, layer: nn.Module, samples: PackedSamples) -> None:
    """Store the position ids when the layer is called. Its scan computes the bounds from them.

    transformers 5.24 checkpoints a layer's `forward`: the layer's own hooks run once. transformers 5.20 checkpoints the
    call: they run again in recomputation. The hooks of the scan inside run in recomputation in both.
    """
    name = type(layer).__name__
    if name not in _BY_INDEX | _BY_BOUNDS or not _is_linear(layer):
        return
    given: list[weakref.ref[torch.Tensor]] = []

    def remember(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        positions = kwargs.get("position_ids")
        given[:] = [] if positions is None else [weakref.ref(positions)]

    def work_out(scan: nn.Module, args: Any) -> None:
        positions = given[0]() if given else None
        if positions is None:
            return
        if name in _BY_INDEX:
            samples.index = _index_of(positions)
        else:
            samples.bounds = _bounds_of(positions)

    def forget(*args: Any) -> None:
        samples.index = samples.bounds = None

    scan = layer.get_submodule(_SCANS[name])
    stack.callback(layer.register_forward_pre_hook(remember, with_kwargs=True).remove)
    stack.callback(scan.register_forward_pre_hook(work_out).remove)
    stack.callback(scan.register_forward_hook(forget, always_call=True).remove)


def _is_linear(layer: nn.Module) -> bool:
    return "linear_attention" in (getattr(layer, "block_type", ""), getattr(layer, "layer_type", ""))


def _index_of(positions: torch.Tensor) -> torch.Tensor:
    starts = torch.cumsum((positions == 0).int(), dim=-1)
    return (starts - starts[..., :1]).to(torch.int32)


def _bounds_of(positions: torch.Tensor) -> torch.Tensor:
    flat = (positions[0] if positions.ndim == 3 else positions).reshape(-1)
    starts = (flat == flat.min()).nonzero().view(-1).to(torch.int32)
    return torch.cat((starts, torch.tensor([len(flat)], dtype=torch.int32, device=flat.device)))


def _note_those_that_cannot(site: Site) -> None:
    classes = {type(module).__name__ for module in site.model.modules()}
    for model_type, layer in _CANNOT_PACK.items():
        if layer in classes:
            text = (
                f"the run fails before its first step: axolotl 0.19's patch for packed {model_type} samples looks for "
                "names that transformers 5.16 no longer has (the figures are without bounds between samples)"
            )
            site.note(RefusalNote(key="sample_packing", text=text, remedy="set `sample_packing: false`"))
