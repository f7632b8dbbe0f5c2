"""Phase 7, Self-guided experts: SVF experts found from the gradient profile, routed, and composed by a search."""
