"""Advice from several estimates: comparisons, cards, changes that make a run fit. There is no formula for memory
here."""
