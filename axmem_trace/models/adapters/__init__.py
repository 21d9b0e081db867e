"""Adapters through peft: from axolotl's keys to a wrapped model."""

from axmem_trace.models.adapters.inject import add_adapter

__all__ = ["add_adapter"]
