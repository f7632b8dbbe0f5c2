"""Storage formats of models: loading of bundles, packed ternary weights, and the single compressed file."""
