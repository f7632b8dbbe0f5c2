"""The eight phases, a package each; no phase imports another."""
