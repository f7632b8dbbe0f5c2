"""Phase 7, Self-guided experts: experts on singular values that the profile asks for, routed, composed by a search."""
