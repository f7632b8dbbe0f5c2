"""Phase 5, Curriculum: practice at the edge of what the model can do, then four rules baked in."""
