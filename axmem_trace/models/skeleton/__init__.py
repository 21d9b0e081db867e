"""From a recipe to an empty model: its configuration, class and attention, built on the meta device."""
