"""Installs all kernels of this package for a trace: one table of rules, and the installers in their order."""

from __future__ import annotations

import sys
from collections.abc import Callable

from axmem_trace.kernels.attention import sdpa, sdpa_scratch
from axmem_trace.kernels.attention.install import install_attention
from axmem_trace.kernels.axolotl.fused_attention import install_fused_attention
from axmem_trace.kernels.axolotl.gemma4_hybrid import install_gemma4_hybrid
from axmem_trace.kernels.axolotl.tiled_mlp import install_tiled_mlp
from axmem_trace.kernels.context.install import install_context
from axmem_trace.kernels.core import (
    autograd_in_place,
    convolution,
    cusolver,
    dropout,
    embedding,
    foreach_norm,
    fused_optimizers,
    indexing,
    matmul,
    normalisation,
    reductions,
    sampling,
    softmax,
)
from axmem_trace.kernels.core.fp8_linear import install_fp8_linear
from axmem_trace.kernels.experts import eager_loop, grouped_mm
from axmem_trace.kernels.experts.install import install_experts
from axmem_trace.kernels.liger.install import install_liger
from axmem_trace.kernels.lora.install import install_lora_kernels
from axmem_trace.kernels.losses import cross_entropy
from axmem_trace.kernels.losses.cut_cross_entropy import install_cut_cross_entropy
from axmem_trace.kernels.losses.logit_losses import install_loss_path
from axmem_trace.kernels.older import mean
from axmem_trace.kernels.older.caches import install_older_bitsandbytes, install_older_cache
from axmem_trace.kernels.repaired import repair_llama4
from axmem_trace.kernels.scans.install import install_scans
from axmem_trace.kernels.site import Site
from axmem_trace.tracing.rules import Rules

_TABLES = (
    fused_optimizers.RULES,
    foreach_norm.RULES,
    sdpa.RULES,
    sdpa_scratch.RULES,
    autograd_in_place.RULES,
    convolution.RULES,
    cusolver.RULES,
    dropout.RULES,
    embedding.RULES,
    indexing.RULES,
    matmul.RULES,
    normalisation.RULES,
    mean.RULES,
    reductions.RULES,
    sampling.RULES,
    softmax.RULES,
    cross_entropy.RULES,
    eager_loop.RULES,
    grouped_mm.RULES,
)

INSTALLERS: tuple[Callable[[Site], None], ...] = (
    install_attention,
    install_context,
    install_gemma4_hybrid,
    install_scans,
    install_experts,
    install_older_bitsandbytes,
    install_older_cache,
    install_loss_path,
    install_cut_cross_entropy,
    install_liger,
    install_fused_attention,
    install_tiled_mlp,
    install_lora_kernels,
    repair_llama4,
    install_fp8_linear,
)
"""In axolotl's order (`loaders/patch_manager.py`). Plugins and the tiled MLP replace classes before the model is loaded. The
LoRA kernels replace the forwards of instances afterwards, so they replace the others."""


def gpu_rules() -> Rules:
    """All rules for kernels of a GPU. Those of bitsandbytes are included only if it has been imported, because its operators
    do not exist before."""
    rules = Rules(*_TABLES)
    if "bitsandbytes" in sys.modules:
        from axmem_trace.kernels.bitsandbytes.rules import make_rules

        rules.include(make_rules())
    return rules


def install_kernels(site: Site) -> None:
    """Make the model run the kernels of the recipe's run on the context's card, until `site.stack` closes."""
    site.recording.add_rules(gpu_rules())
    if "bitsandbytes" in sys.modules:
        from axmem_trace.kernels.bitsandbytes.rules import install_quiet_bitsandbytes

        install_quiet_bitsandbytes(site)
    for install in INSTALLERS:
        install(site)


def install_on_second_model(site: Site) -> None:
    """Apply axolotl's patches of classes to another model of the same classes, such as a reference model."""
    for install in (install_gemma4_hybrid, install_liger, install_fused_attention, install_tiled_mlp):
        install(site)
