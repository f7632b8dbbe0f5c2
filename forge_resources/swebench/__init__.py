"""Repairs of real programs: two releases of a package make a case, graded as SWE-bench does."""
