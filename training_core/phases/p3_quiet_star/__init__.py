"""Phase 3, Quiet-STaR: trains thoughts before hard tokens, and the controls against which they are tested."""
