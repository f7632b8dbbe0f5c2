"""Merging models that branched from one trunk: the merge formulas and an evolutionary search over them."""
