"""DeepSpeed's ZeRO on meta: its order of operations, written again, because DeepSpeed compiles when it is imported.

layout      which part of which parameter a rank owns; no torch
loading     what DeepSpeed does to a model before its optimizer: the cast to one dtype
host        tensors in host memory
gradients   ZeRO-1 and 2: the buckets that gradients are reduced in, and the part that a rank keeps
stage12     ZeRO-1 and 2: the engine
frozen      ZeRO-3: a second model that is not trained, divided like the policy
norms       the norm of the gradients, and the search for infinite ones
"""
