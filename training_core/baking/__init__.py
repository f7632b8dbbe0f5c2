"""Prompt baking (arXiv:2409.13697): what a prompt does to a model, moved into its weights."""
