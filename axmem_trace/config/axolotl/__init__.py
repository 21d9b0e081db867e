"""The differences between the releases of axolotl.

- `releases.py`: the known releases, the library versions that each requires, and the choice of one for a run;
- `behaviour.py`: what axolotl does without a key. Each difference is one typed field, with file and line of its source;
- `changed_figures.py`: keys that many configurations have, and for which another release needs more or less memory;
- `embeddings.py`: axolotl's names for the input embedding and the output head.

Two kinds of differences are elsewhere. The keys of each release are in `config/document/keys.json`, in the row of each key.
Each refusal in `config/refusals` names its first and last release (`Rule.since`, `Rule.until`).
"""

from axmem_trace.config.axolotl.behaviour import Behaviour
from axmem_trace.config.axolotl.releases import NEWEST, RELEASES, Release, choose_release

__all__ = ["NEWEST", "RELEASES", "Behaviour", "Release", "choose_release"]
