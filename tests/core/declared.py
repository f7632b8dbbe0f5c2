"""What a phase measures is what it declares."""

from __future__ import annotations

from training_core.record import record
from training_core.registry import PHASES
from training_core.store.bundle import Product


def assert_declared(name: str, product: Product) -> None:
    """Every metric of `product` is a field of the record of the phase `name`, and none that it requires is missing."""
    declared = PHASES[name].result
    assert declared is not None
    assert record(declared, product.metrics).metrics() == dict(product.metrics)
