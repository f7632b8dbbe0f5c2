"""Phase 4, BitNet 1.58-bit: ternary weights, trained through the straight-through estimator."""
