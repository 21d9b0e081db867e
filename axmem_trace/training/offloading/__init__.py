"""What axolotl moves between card and host during a step: saved activations, checkpointed inputs, frozen layers."""

from axmem_trace.training.offloading.install import StepContext, install_offloading

__all__ = ["StepContext", "install_offloading"]
