"""Singular value fine-tuning: experts as multipliers of singular values, with their training, routing and accuracy."""
