"""bitsandbytes' 4-bit and 8-bit linear layers: the Python code of its own CUDA kernels runs on meta.

On meta, bitsandbytes' own functions only give the shapes of outputs (`_ops.py`). The temporary tensors of a GPU (int32
accumulators, dequantised weights, outlier columns) are allocated by the Python code around its C kernels, which also runs on
meta.
"""
