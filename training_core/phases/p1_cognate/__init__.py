"""Phase 1: the trunk and the three Cognate specialists that branch from it."""
