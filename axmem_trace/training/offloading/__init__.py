"""Data that axolotl moves between card and host in a step: saved activations, checkpointed inputs, frozen layers."""

from axmem_trace.training.offloading.install import StepContext, install_offloading

__all__ = ["StepContext", "install_offloading"]
