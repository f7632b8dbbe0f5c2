"""Layers and models: attention, neural memory, the Titans-MAG block, Cognate, and their ternary form."""
