"""Repairing programs: instances in the manner of SWE-bench, line edits as a tool, and how a repair is graded."""
