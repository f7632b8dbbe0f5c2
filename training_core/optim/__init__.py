"""The MuGrokfast optimizer: Grokfast's gradient filter, then Muon for hidden matrices and AdamW for the rest."""
