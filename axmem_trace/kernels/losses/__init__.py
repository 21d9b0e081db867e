"""From logits or hidden states to a loss: fused linear losses, chunked losses, distillation."""
