"""axolotl's tiled MLP: the MLP runs on one slice of the tokens after the other. Backward runs it again in the same way.

Source: axolotl 0.19 `monkeypatch/tiled_mlp/base.py` (`TiledMLP`), `patch.py` (`patch_tiled_mlp`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.modeling_files import modeling_module
from axmem_trace.kernels.site import Site, class_prefix
from axmem_trace.kernels.sources import note_source
from axmem_trace.notes import Note

KEY = "tiled_mlp"


class TiledMlp(torch.autograd.Function):
    """Keeps only the input. Backward allocates zeros for the gradients of the input and of every trained parameter, and adds
    each slice's gradients to them."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[torch.Tensor], Any], x: torch.Tensor, num_tiles: int, trained: list[nn.Parameter]
    ) -> Any:
        ctx.run, ctx.num_tiles, ctx.trained = run, num_tiles, trained
        ctx.save_for_backward(x)
        with torch.no_grad():
            outputs = [run(tile) for tile in x.chunk(num_tiles, dim=1)]
        if isinstance(outputs[0], tuple):  # with the router's logits, which have no rows
            return tuple(torch.cat(each, dim=dim) for each, dim in zip(zip(*outputs, strict=True), (1, 0), strict=True))
        return torch.cat(outputs, dim=1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        needs_grad = x.requires_grad
        x = x.detach()
        x_grad = torch.zeros_like(x)
        earlier = [parameter.grad for parameter in ctx.trained]
        sums = [torch.zeros_like(parameter) for parameter in ctx.trained]
        for parameter in ctx.trained:
            parameter.grad = None
        offset, latest = 0, None
        for tile in x.chunk(ctx.num_tiles, dim=1):
            tile.requires_grad_(needs_grad)
            tile.grad = _slice_as(x_grad, offset, tile)
            with torch.enable_grad():
                output = ctx.run(tile)
            first = output[0] if isinstance(output, tuple) else output
            torch.autograd.backward(first, _slice_as(grad_outputs[0], offset, tile))
            latest = _collect(ctx.trained, sums)  # alive until the next tile's gradients are computed
            offset += tile.numel()
        del latest
        for parameter, before, total in zip(ctx.trained, earlier, sums, strict=True):
            parameter.grad = total if before is None else before + total
        return None, x_grad, None, None


def _slice_as(whole: torch.Tensor, offset: int, tile: torch.Tensor) -> torch.Tensor:
    """The part of `whole` at `offset` elements, in the tile's shape. As in axolotl, it is exact only for one row."""
    return whole.reshape(-1).narrow(0, offset, tile.numel()).view_as(tile)


def _collect(parameters: list[nn.Parameter], sums: list[torch.Tensor]) -> torch.Tensor | None:
    """Adds a slice's parameter gradients to their sums. Returns the last gradient, which axolotl's loop keeps alive."""
    latest = None
    for parameter, total in zip(parameters, sums, strict=True):
        if parameter.grad is not None:
            latest = parameter.grad.detach().to(total.dtype)
            total.add_(latest)
            parameter.grad = None
    return latest


def install_tiled_mlp(site: Site) -> None:
    """Install it on every `<Prefix>MLP` (or `<Prefix>TextMLP`) of the model's type. With ScatterMoE, install it on the
    blocks of experts, including the router."""
    kernels = site.recipe.kernels
    if not kernels.tiled_mlp:
        return
    if site.recipe.parallel.engine in ("zero1", "zero2", "zero3"):
        text = "with DeepSpeed its own tiled MLP runs, which is not modelled: the figures are with MLPs in one piece"
        site.note(Note(kind="not_modelled", key=KEY, text=text, direction="less"))
        return
    name = _tiled_class(site)
    mlps = list(site.instances((name,), site.model_type))
    if not mlps:
        text = f"this model has no {name} of {site.model_type}: the MLP runs in one piece"
        site.note(Note(kind="warning", key=KEY, text=text))
    for mlp in mlps:
        site.replace_forward(mlp, _make_forward(mlp, kernels.tiled_mlp_shards))
        note_source(site, KEY)
    if "mlp" in kernels.lora and mlps:
        text = "axolotl's LoRA kernel replaces the MLP's forward after tiled_mlp did: layers that get it are not tiled"
        site.note(Note(kind="warning", key=KEY, text=text))


def _tiled_class(site: Site) -> str:
    """The first of these class names that the model's file has (`_resolve_moe_block_cls`, `patch_tiled_mlp`)."""
    prefix, modeling = class_prefix(site.model_type), modeling_module(site.model_type)
    blocks = ("SparseMoeBlock", "MoeMLP", "MoE") if site.recipe.model.experts_implementation == "scattermoe" else ()
    names = [f"{prefix}{suffix}" for suffix in (*blocks, "MLP", "TextMLP")]
    return next((name for name in names if hasattr(modeling, name)), f"{prefix}MLP")


def _make_forward(mlp: nn.Module, num_tiles: int) -> Callable[..., Any]:
    run = mlp.forward

    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return TiledMlp.apply(run, x, num_tiles, trained)

    return forward
