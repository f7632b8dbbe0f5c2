"""An expert bundle measured as it lies on disk: what every model is measured on, and whether its experts come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from training_core.evaluation.suite import Measurement, measure_bundle
from training_core.phases.p7_experts.bundles import load_experts, probed_tokens
from training_core.reporting import Reporter
from training_core.store.bundle import Bundle


def measure_expert_bundle(
    bundle: Bundle, suite: Path, parents: Mapping[str, Bundle], reporter: Reporter
) -> Measurement:
    """`measure_bundle` of the model without experts, and `expert_reproduction_error`.

    Raises:
        BundleError: when the bundle or a parent's record cannot be read.
        ValueError: when a parent was measured on another suite.
    """
    measurement = measure_bundle(bundle, suite, parents, reporter)
    return replace(
        measurement, metrics={**measurement.metrics, "expert_reproduction_error": reproduction_error(bundle)}
    )


def reproduction_error(bundle: Bundle) -> float:
    """Largest absolute difference of any logit between each expert when it was measured and as it comes from the
    bundle: with the decomposition that is stored, and with one that is worked out again from the packed weights."""
    tokens_BS, then_KBV = probed_tokens(bundle)
    errors = [
        float((load_experts(bundle, decompose_again=again).probe(tokens_BS) - then_KBV).abs().max())
        for again in (False, True)
    ]
    return max(errors)
