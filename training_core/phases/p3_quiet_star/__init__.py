"""Phase 3, Quiet-STaR: thoughts before hard tokens, and the controls that test them."""
