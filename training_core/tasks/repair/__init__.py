"""Program repair: instances in the form of SWE-bench, line edits as a tool, and the grading of repairs."""
