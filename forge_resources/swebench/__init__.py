"""Repair of real programs: instances made from two releases of a package, graded as in SWE-bench."""
