"""Phase 3: thoughts before tokens (Quiet-STaR), and the controls that test them."""
