"""Bundles, digests, checkpoints and cached results on disk."""
