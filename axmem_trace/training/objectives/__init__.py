"""The training objective: one module for each training method, and `choose_objective`, which chooses it."""

from axmem_trace.training.objectives.choose import choose_objective
from axmem_trace.training.objectives.objective import Objective, RunModel

__all__ = ["Objective", "RunModel", "choose_objective"]
