"""Attention as on CUDA: SDPA's kernels, FlashAttention, flex, xformers, SageAttention.

install             installs all kernels
sdpa                the memory of `scaled_dot_product_attention`
sdpa_choice, sdpa_math, sdpa_scratch    the choice of its kernel; the math path; temporary memory
efficient_sizes, flash_sizes, hopper_sizes    temporary memory of single kernels, in bytes
flash2, flash34     FlashAttention 2, and 3 and 4; `flash34_functions`: the functions of their packages
flex, xformers_attention, sage, packed_sdpa    the other kernels
fused               a kernel on meta, as one autograd function
transformers_flash, transformers_names    how transformers finds the kernels
refuse_call, sources    calls that kernels refuse; notes with the sources of the rules
"""
