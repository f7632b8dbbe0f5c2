"""Phase 5: a curriculum at the edge of what the model can do."""
