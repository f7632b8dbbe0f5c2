"""An assertion that a phase measures exactly what it declares."""

from __future__ import annotations

from training_core.record import record
from training_core.registry import PHASES
from training_core.store.bundle import Product


def assert_declared(name: str, product: Product) -> None:
    """Assert that the metrics of `product` are fields of the result record of phase `name`, with none missing."""
    declared = PHASES[name].result
    assert declared is not None
    assert record(declared, product.metrics).metrics() == dict(product.metrics)
