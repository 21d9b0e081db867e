"""YAML to `Recipe`: the only room that sees YAML, and it never sees torch."""
