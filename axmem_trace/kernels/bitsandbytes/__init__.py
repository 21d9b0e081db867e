"""bitsandbytes' 4-bit and 8-bit linear layers: its own CUDA kernels' Python, run on meta.

On meta, bitsandbytes only has the shapes of its operators' results (`_ops.py`). What a GPU allocates in between (int32
accumulators, dequantised weights, outlier columns) is in the Python code around its C kernels, which runs on meta too.
"""
