"""Text generation: streaming from one prompt, and batched sampling."""
