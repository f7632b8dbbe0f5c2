"""What models are stored as: bundles of each kind, packed ternary weights, the one compressed file."""
