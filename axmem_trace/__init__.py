"""Predict the GPU memory of an axolotl fine-tuning run, with no GPU, no weights and no network."""

__version__ = "0.1.0"
