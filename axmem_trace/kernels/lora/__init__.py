"""axolotl's fused LoRA kernels: projections, MLP and embedding."""
