"""The recipe: frozen types that say what a run is. No YAML and no torch here."""
