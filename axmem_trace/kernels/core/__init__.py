"""PyTorch's own CUDA kernels: what they keep for backward and allocate, where the meta kernel differs.

Sources are torch 2.13's: the CUDA headers that come with it (torch/include/ATen), torchgen's packaged
`native_functions.yaml` and `derivatives.yaml`, and aten/src/ATen/native in its repository.
"""
