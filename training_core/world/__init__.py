"""A generated world: simulated stories in simple words, questions whose answers follow from them, and their checker."""
