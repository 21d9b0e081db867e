"""Experts in layouts that differ from transformers': one linear layer each, or packed."""
