"""Phase 2, EvoMerge: an evolutionary search over linear, SLERP, TIES and DARE merges of the specialists."""
