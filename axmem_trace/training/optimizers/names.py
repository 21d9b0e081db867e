"""Names of optimizers: aliases, retired names, and accepted names."""

from __future__ import annotations

import difflib

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes

ALIASES = {
    "muon_8bit": "muon",  # the note of `config/derive/optimizer.py` says that it keeps less
    "adamw_8bit": "adamw_bnb_8bit",  # transformers/training_args.py, OptimizerNames.ADAMW_8BIT: "just an alias"
}

RETIRED = {
    "adamw_hf": "transformers 5 has dropped its own AdamW, so axolotl 0.19 fails on the name; estimated as "
    "transformers 4 stepped",
    "adamw_apex_fused": "transformers 5 has dropped apex's FusedAdam, so axolotl 0.19 fails on the name; estimated as "
    "apex steps",
    "adamw_anyprecision": "needs the package torchdistx, whose development has ended",
}
"""Names of older releases, and their current status."""

UNAVAILABLE = {
    "polora": "its package is published only as a git repository, and its states could not be read; any other "
    "optimizer can be estimated",
    "scao": "what it keeps could not be read; any other optimizer can be estimated",
    "adamw_torch_xla": "it runs on TPUs through torch_xla, not on CUDA",
    "adamw_torch_npu_fused": "it runs on Ascend NPUs, not on CUDA",
    "ao_adamw_4bit": 'axolotl 0.19 lists the name and then fails with "Unhandled optimizer"; transformers\' '
    "adamw_torch_4bit is the same optimizer",
    "ao_adamw_8bit": 'axolotl 0.19 lists the name and then fails with "Unhandled optimizer"; transformers\' '
    "adamw_torch_8bit is the same optimizer",
}
"""Names that axolotl accepts, but that can't be used for training on a CUDA GPU or can't be estimated."""


def canonical_name(name: str, known: frozenset[str]) -> str:
    """The name under which an optimizer is built.

    Raises:
        ConfigError: the name is unknown (with the nearest names), or it cannot run on a CUDA GPU.
    """
    name = ALIASES.get(name, name)
    if name in UNAVAILABLE:
        raise ConfigError(f"{name} cannot be estimated: {UNAVAILABLE[name]}", key="optimizer", value=name)
    if name not in known:
        near = difflib.get_close_matches(name, known | ALIASES.keys(), n=3, cutoff=0.5)
        raise ConfigError(
            "unknown optimizer",
            key="optimizer",
            value=name,
            accepted=", ".join(near or sorted(known | ALIASES.keys())),
            remedy="use one of the optimizers that axolotl knows",
        )
    return name


def note_on_name(name: str) -> Notes:
    """A warning for a name of an older release."""
    return Notes([Note(kind="warning", key="optimizer", text=f"{name}: {RETIRED[name]}")] if name in RETIRED else [])
