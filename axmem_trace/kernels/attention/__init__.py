"""Attention as CUDA runs it: SDPA's kernels, FlashAttention, flex, xformers, SageAttention."""

from axmem_trace.kernels.attention.install import install_attention

__all__ = ["install_attention"]
