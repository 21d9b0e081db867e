"""The transformers that axolotl pins, and what a failure says where another one is installed."""

from __future__ import annotations

PINNED_TRANSFORMERS = {"0.19": "5.16.1", "0.21": "5.20.1"}
"""By axolotl's version."""


def describe_pins() -> str:
    """`5.16.1 (axolotl 0.19) or 5.20.1 (axolotl 0.21)`."""
    return " or ".join(f"{release} (axolotl {version})" for version, release in PINNED_TRANSFORMERS.items())


def hint_at_pins() -> str:
    """For the end of a remedy: a run has another transformers than the one that failed here; empty where it has not."""
    import transformers

    if transformers.__version__ in PINNED_TRANSFORMERS.values():
        return ""
    found = f"; the installed transformers {transformers.__version__} is none that axolotl pins: a run has "
    return f"{found}{describe_pins()}, with which this may work"
