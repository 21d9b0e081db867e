"""Kernels for which meta differs from a GPU: one rule for each, and the replacements that are installed during a trace.

install       the table of all rules, and all installers in their order
core/         torch's own operators: matmul, softmax and cross-entropy, normalisation, `foreach` (optimizers), ...
context/      attention with rows that are divided among ranks
attention/    SDPA, FlashAttention 2 to 4, flex, xformers, SageAttention
losses/       losses that axolotl replaces: cut cross-entropy, chunks, distillation, log-probabilities
liger/, lora/, axolotl/    layers that Liger and axolotl replace
bitsandbytes/, experts/, scans/    4 and 8 bit; mixture of experts; Mamba, gated delta rule, RWKV
older/        behaviour of older releases of the libraries
"""
