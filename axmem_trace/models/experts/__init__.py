"""Experts of a mixture as other code than transformers' lays them out: a linear layer each, or packed."""
