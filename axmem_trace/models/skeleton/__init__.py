"""From a recipe to an empty model on the meta device: its configuration, class and attention."""
