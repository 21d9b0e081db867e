"""Attention as CUDA runs it: SDPA's kernels, FlashAttention, flex, xformers, SageAttention."""
