"""State-space and linear-attention kernels: mamba-ssm, causal-conv1d and flash-linear-attention on meta.

install          replaces the functions in transformers' modeling files
mamba_inner, selective_scan    Mamba-1
ssd, ssd_split   Mamba-2
gated_delta, kda, fla_blocks   Qwen3-Next's and Kimi's delta rules, and their shared code
rwkv             RWKV-4
causal_conv, short_conv        convolutions before a scan
packing, layouts    packed samples; layouts that the kernels need
"""
