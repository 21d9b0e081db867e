"""The recipe: frozen types that describe a run. No YAML and no torch here."""
