"""The transformers releases that axolotl pins, and the hint in errors if another one is installed."""

from __future__ import annotations

PINNED_TRANSFORMERS = {"0.19": "5.16.1", "0.21": "5.20.1"}
"""By axolotl's version."""


def describe_pins() -> str:
    """`5.16.1 (axolotl 0.19) or 5.20.1 (axolotl 0.21)`."""
    return " or ".join(f"{release} (axolotl {version})" for version, release in PINNED_TRANSFORMERS.items())


def hint_at_pins() -> str:
    """The end of an advice: the run has another transformers than the one that failed here; empty if it has the same."""
    import transformers

    if transformers.__version__ in PINNED_TRANSFORMERS.values():
        return ""
    found = f"; axolotl does not pin the installed transformers {transformers.__version__}: a run has "
    return f"{found}{describe_pins()}, with which this may work"
