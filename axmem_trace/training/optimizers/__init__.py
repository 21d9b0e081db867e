"""Optimizers: makes an optimizer that runs on meta, from a recipe and a module.

`build_optimizer` returns the run's optimizer: the library's own class if it runs on meta (torch, transformers,
bitsandbytes), otherwise a class of this package that allocates what the library's source allocates, in its order.
Everything that the step allocates is the result of a torch operator, so a dispatch mode can record it.
"""

from axmem_trace.training.optimizers.build import build_optimizer, known_optimizers
from axmem_trace.training.optimizers.clipping import GradientScaler, clip_gradients
from axmem_trace.training.optimizers.meta_as_cuda import meta_as_cuda
from axmem_trace.training.optimizers.traced import TracedOptimizer

__all__ = ["GradientScaler", "TracedOptimizer", "build_optimizer", "clip_gradients", "known_optimizers", "meta_as_cuda"]
