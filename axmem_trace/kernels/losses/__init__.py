"""Losses from logits or hidden states: fused linear losses, chunked losses, distillation."""
