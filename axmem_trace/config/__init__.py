"""YAML to `Recipe`: the only package that reads YAML; it never imports torch.

document/      the file: its text, keys, values and the line of each
derive/        one file for each part of the recipe
refusals/      what axolotl refuses
reader         `read_recipe`: all of it in order
warn, warn_*   effects of the configuration that its author may not expect
assumptions    `--assume`; `assumption_table`: its keys
alternatives   what older releases would have run instead
"""

from axmem_trace.config.assumption_table import ASSUMPTIONS
from axmem_trace.config.reader import read_recipe

__all__ = ["ASSUMPTIONS", "read_recipe"]
