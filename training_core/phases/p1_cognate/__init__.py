"""Phase 1, Cognate: the trunk (Titans-MAG, TRM recursion, ACT halting) and three specialists branched from it."""
