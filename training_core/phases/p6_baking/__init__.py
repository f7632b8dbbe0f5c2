"""Phase 6, Tool and persona baking: prompts are half-baked into the weights, in alternating A and B cycles."""
