"""Text from a model: generation and batched sampling."""
