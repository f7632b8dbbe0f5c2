"""MuGrokfast: Grokfast's gradient filter, then Muon for hidden matrices and AdamW for everything else."""
