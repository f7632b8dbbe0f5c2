"""Phase 5, Curriculum: practice at the edge of the model's ability, then baking of four rules into its weights."""
