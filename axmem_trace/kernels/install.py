"""The door of this package: `install_fused_kernels`, opened around the trace, after the model is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from axmem_trace.kernels.axolotl.fused_attention import install_fused_attention
from axmem_trace.kernels.axolotl.tiled_mlp import install_tiled_mlp
from axmem_trace.kernels.liger.install import install_liger
from axmem_trace.kernels.lora.install import install_lora_kernels
from axmem_trace.kernels.losses.cut_cross_entropy import install_cut_cross_entropy
from axmem_trace.kernels.losses.logit_losses import install_loss_path
from axmem_trace.kernels.older.caches import install_older_bitsandbytes, install_older_cache
from axmem_trace.kernels.site import Site
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import Recipe


@contextmanager
def install_fused_kernels(module: nn.Module, recipe: Recipe, notes: Notes) -> Iterator[None]:
    """While open, the built model runs the fused kernels that axolotl would have installed for `recipe`.

    In axolotl's order (`loaders/patch_manager.py`): plugins and tiled MLP replace classes before the model is loaded,
    the LoRA kernels replace the forwards of instances afterwards, so they win over both.

    Args:
        module: the model as `build_model` returns it, in a peft wrapper or not.
        notes: gets what could not be installed, and what axolotl would warn of.
    """
    with ExitStack() as stack:
        site = Site(module, recipe, notes, stack)
        for install in (install_older_bitsandbytes, install_older_cache, install_loss_path, install_cut_cross_entropy,
                        install_liger, install_fused_attention, install_tiled_mlp, install_lora_kernels):  # fmt: skip
            install(site)
        yield
