"""What PyTorch's own CUDA kernels keep and take where meta says otherwise.

Sources are torch 2.13's: the CUDA headers that come with it (torch/include/ATen), torchgen's packaged
`native_functions.yaml` and `derivatives.yaml`, and aten/src/ATen/native in its repository.
"""
