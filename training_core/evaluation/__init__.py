"""The evaluation suite: the same held-out data and metrics after every phase."""
