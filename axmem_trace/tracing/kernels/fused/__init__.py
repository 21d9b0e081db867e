"""Fused kernels that axolotl installs into a model: Liger, Cut Cross Entropy, LoRA kernels, chunked losses, tiled MLP.

Each is an autograd function that keeps and allocates what the library's own does; the arithmetic of a Triton kernel,
which no ledger sees, is left out or done by ordinary operators. `install` is the door.
"""

from axmem_trace.tracing.kernels.fused.install import install_fused_kernels

__all__ = ["install_fused_kernels"]
