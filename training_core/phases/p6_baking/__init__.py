"""Phase 6, Tool and persona baking: prompts baked into the weights, half at a time, in A/B cycles."""
