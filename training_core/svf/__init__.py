"""SVD value fine-tuning: experts as multipliers of singular values, their training, routing and accuracy."""
