"""bitsandbytes' 4-bit and 8-bit linear layers: its own CUDA kernels' Python, run on meta.

bitsandbytes gives meta only the shapes of its operators' results (`_ops.py`). What a GPU allocates on the way (int32
accumulators, dequantised weights, outlier columns) is in the Python around its C kernels, which runs on meta too.
"""
