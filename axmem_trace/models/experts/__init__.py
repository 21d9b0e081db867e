"""Experts in other layouts than transformers': a linear layer for each, or packed."""
