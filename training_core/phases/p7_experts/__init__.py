"""Phase 7: experts that scale singular values, found from a model's own profile, routed and composed by a search."""
