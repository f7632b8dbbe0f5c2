"""Evaluation of an expert bundle as stored on disk: the suite, and whether its experts reproduce their logits."""

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
    """Measure the model without experts by `measure_bundle`, and add `expert_reproduction_error`.

    Raises:
        BundleError: when the bundle or a parent's record cannot be read.
        ValueError: when a parent was measured on another suite.
    """
    measurement = measure_bundle(bundle, suite, parents, reporter)
    return replace(
        measurement, metrics={**measurement.metrics, "expert_reproduction_error": reproduction_error(bundle)}
    )


def reproduction_error(bundle: Bundle) -> float:
    """Return the largest absolute logit difference between the experts as measured and as loaded from the bundle.

    They are loaded twice: with the stored SVD, and with one recomputed from the packed weights.
    """
    tokens_BS, then_KBV = probed_tokens(bundle)
    errors = [
        float((load_experts(bundle, decompose_again=again).probe(tokens_BS) - then_KBV).abs().max())
        for again in (False, True)
    ]
    return max(errors)
