"""The training loop shared by all phases: batches, optimizer steps, checkpoints, resume, reporting."""
