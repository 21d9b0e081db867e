"""The memory of axolotl's trainer callbacks, which run between the passes of a step."""

from axmem_trace.training.callbacks.grokfast import GradientAverage
from axmem_trace.training.callbacks.relora import restart_relora

__all__ = ["GradientAverage", "restart_relora"]
