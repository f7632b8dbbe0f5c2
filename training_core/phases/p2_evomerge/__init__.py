"""Phase 2, EvoMerge: linear, SLERP, TIES and DARE merges of the specialists, chosen by an evolution."""
