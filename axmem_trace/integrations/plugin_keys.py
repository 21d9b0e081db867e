"""The plugin's keys, in the form for axolotl's schema (axolotl 0.21.0 `integrations/config.py` `merge_input_args`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class MemoryCheckArgs(BaseModel):
    """Keys that a configuration may have if it lists `axmem_trace.MemoryPlugin`."""

    memory_check: Literal["warn", "stop"] | None = Field(
        default=None,
        json_schema_extra={
            "description": "what to do if the prediction says that the run does not fit the card: `warn` (default) "
            "says so and goes on, `stop` ends the run before the model is loaded"
        },
    )
