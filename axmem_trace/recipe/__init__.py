"""YAML to `Recipe`: the only room that sees YAML, and it never sees torch.

yaml_reader      text to plain values and the line of every key
key_table        keys.json: type, default and verdict of every key of axolotl's schema and plugins
key_checks       types, unknown keys, keys that move memory unseen
legacy           old names, understood or refused
rejections       what axolotl refuses
reader           read_recipe: all of it in order, and one `derive_*` per part of the recipe
traps            what the run will do and its author may not expect
assumptions      --assume
"""

from axmem_trace.recipe.assumptions import ASSUMPTIONS
from axmem_trace.recipe.reader import read_recipe

__all__ = ["ASSUMPTIONS", "read_recipe"]
