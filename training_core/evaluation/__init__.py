"""The one evaluation suite: the same held-out data and the same measures after every phase."""
