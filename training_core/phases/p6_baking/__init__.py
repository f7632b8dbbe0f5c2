"""Cycles that bake tools and personas in turns, until neither improves the model."""
