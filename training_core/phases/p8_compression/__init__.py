"""Phase 8, Final compression: a restructured ternary student, distilled and entropy-coded into a single file."""
