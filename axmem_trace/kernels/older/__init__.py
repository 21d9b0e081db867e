"""Behaviour of older releases of the libraries, for runs that were measured with them. `recipe.older` selects it.

mean     PyTorch before 2.2: backward of a mean keeps its input
caches   keys and values in the outputs; inputs of 4-bit layers
losses   transformers 4's shifted copies of the logits, by `loss.path`

Repeated keys and values are in `attention/flash2.py` (two lines).
"""
