"""Persistence: bundles, digests, checkpoints and cached results."""
