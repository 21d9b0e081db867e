"""What differs between the releases of axolotl, said in this one place.

- `releases.py`: the releases that are known, the libraries that each pins, and which one a run is estimated for;
- `behaviour.py`: what axolotl does by itself, one typed field for each difference, with file and line of its source;
- `keys.py`: the table of keys as each release has it (`keys.json` has the differences in the row of each key);
- `changed_figures.py`: keys that many configurations have and that gave another figure in another release.

Rules of refusal say in `config/refusals` from which release, or until which one, they hold (`Rule.since`, `Rule.until`).
"""

from axmem_trace.config.axolotl.behaviour import Behaviour
from axmem_trace.config.axolotl.releases import NEWEST, RELEASES, Release, choose_release

__all__ = ["NEWEST", "RELEASES", "Behaviour", "Release", "choose_release"]
