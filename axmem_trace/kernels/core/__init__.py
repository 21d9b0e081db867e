"""PyTorch's own CUDA kernels that keep or allocate other tensors than their meta kernels.

Sources are those of torch 2.13: the CUDA headers in its wheel (torch/include/ATen), torchgen's `native_functions.yaml` and
`derivatives.yaml`, and aten/src/ATen/native in its repository.
"""
