"""Losses from logits or hidden states: PyTorch's cross-entropy, fused linear losses, chunked losses, distillation."""
