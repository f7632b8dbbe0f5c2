"""One training loop for every phase: batches, optimizer steps, checkpoints, resume, reporting."""
