"""Phase 4, BitNet 1.58-bit: quantisation-aware training of ternary weights with the straight-through estimator."""
