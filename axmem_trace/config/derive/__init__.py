"""From the keys of a configuration to the parts of a recipe: one file for each part."""
