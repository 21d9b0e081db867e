"""State-space and linear-attention kernels: mamba-ssm, causal-conv1d and flash-linear-attention on meta."""
