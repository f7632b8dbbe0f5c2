"""The quality gates: which measured number of which asset must lie on which side of which threshold.

This table is the only place where a threshold stands. It is under version control and no run's configuration
can change it. From it come one blocking check `gate` per model asset and one non-blocking check `claims`
where an asset promises more than it must keep. A check judges what is stored: the bundle that the latest
materialization names, opened from the model store with its digest verified.

Importing this module loads no model code: the run coordinator does so in the webserver and in the daemon.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import dagster as dg

from forge_resources.gatekeeping import latest_materialization
from training_core.gates import Gate, Verdict, judge

MODELS = (
    "trunk",
    "cognate_reasoning",
    "cognate_memory",
    "cognate_speed",
    "merged_model",
    "reasoning_model",
    "ternary_model",
    "compressed_model",
)


def _validity(asset: str) -> tuple[Gate, ...]:
    return (
        Gate(asset, "finite", "non_finite_weights", "at_most", 0, "count of NaN or infinite weights"),
        Gate(
            asset,
            "causal",
            "causality_violations",
            "at_most",
            0,
            "logits before a changed token that moved, in any bit",
        ),
    )


def _learned(asset: str) -> Gate:
    return Gate(
        asset,
        "learned",
        "margin_below_baseline_low",
        "at_least",
        0.0,
        "bits per byte below the baseline on held-out documents, low end of the 95 % interval",
        against="the best n-gram baseline",
    )


def _thought_claim(name: str, metric: str, against: str) -> Gate:
    evidence = "bits per token gained on the hardest decile of held-out tokens, low end of the 95 % interval"
    return Gate("reasoning_model", name, metric, "at_least", 1e-4, evidence, against=against, blocking=False)


GATES: tuple[Gate, ...] = (
    *(gate for asset in MODELS for gate in _validity(asset)),
    *(_learned(asset) for asset in ("trunk", "cognate_reasoning", "cognate_memory", "cognate_speed")),
    Gate(
        "merged_model",
        "not_worse",
        "bits_per_byte_over_best_parent",
        "at_most",
        0.0,
        "bits per byte on the validation documents that the merge was chosen by",
        against="the best parent",
    ),
    Gate(
        "merged_model",
        "holds_out",
        "bits_per_byte_ratio_to_best_parent_high",
        "at_most",
        1.02,
        "bits per byte on held-out documents, high end of the paired 95 % interval",
        against="the best parent",
    ),
    Gate(
        "merged_model",
        "gains",
        "bits_per_byte_ratio_to_best_parent_high",
        "at_most",
        1.0,
        "bits per byte on held-out documents that no selection has seen, high end of the paired 95 % interval",
        against="the best parent",
        blocking=False,
    ),
    Gate(
        "reasoning_model",
        "not_worse",
        "bits_per_byte_ratio_to_best_parent_high",
        "at_most",
        1.01,
        "bits per byte on held-out documents with thoughts off, high end of the paired 95 % interval",
        against="the merged model",
    ),
    Gate(
        "reasoning_model",
        "thoughts_causal",
        "thought_leaks",
        "at_most",
        0,
        "thought tokens and logits with thoughts that moved, in any bit, when a later token did",
    ),
    Gate("reasoning_model", "decodes", "undecodable_thoughts", "at_most", 0, "measured thoughts that are not text"),
    _thought_claim("thoughts_help", "thought_gain_hard_low", "the same model with thoughts off"),
    _thought_claim("content", "thought_over_shuffled_hard_low", "the thoughts of another position"),
    _thought_claim("beyond_compute", "thought_over_pause_hard_low", "equal compute without content"),
    _thought_claim("reward", "thought_over_random_reward_hard_low", "training with a random reward"),
    Gate(
        "ternary_model",
        "retains",
        "bits_per_byte_ratio_to_best_parent_high",
        "at_most",
        1.10,
        "bits per byte on held-out documents, high end of the paired 95 % interval",
        against="the model before quantization",
    ),
    Gate(
        "ternary_model",
        "smaller",
        "bytes_ratio",
        "at_least",
        6.0,
        "the parent's parameters at four bytes each, over this model's bytes on disk",
    ),
    Gate(
        "ternary_model",
        "paper_ratio",
        "bytes_ratio",
        "at_least",
        8.2,
        "the parent's parameters at four bytes each, over this model's bytes on disk",
        blocking=False,
    ),
    Gate("compressed_model", "fits", "bytes_on_disk", "at_most", 64_000, "size of model.forge on disk"),
    Gate(
        "compressed_model",
        "retains",
        "retention_to_best_parent_low",
        "at_least",
        0.84,
        "share of the next-token accuracy that is kept, low end of the 95 % interval",
        against="the ternary model",
    ),
    Gate(
        "compressed_model",
        "seed_ratio",
        "bits_per_parameter",
        "at_most",
        0.128,
        "bits on disk for each parameter of the model that was trained",
        blocking=False,
    ),
)

# Thresholds in units that grow with the model. An asset and gate named here has no other threshold.
BY_PROFILE: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("compressed_model", "fits"): {"nano": 110_000, "mini": 520_000, "forge_25m": 400_000},
}


def gate_checks(gates: Sequence[Gate] = GATES) -> dict[dg.AssetKey, list[dg.AssetCheckKey]]:
    """The check that closes the way to an asset's children, for every asset with a blocking gate."""
    assets = dict.fromkeys(gate.asset for gate in gates if gate.blocking)
    return {dg.AssetKey(asset): [dg.AssetCheckKey(dg.AssetKey(asset), "gate")] for asset in assets}


def gates_for(
    asset: str,
    profile: str,
    gates: Sequence[Gate] = GATES,
    by_profile: Mapping[tuple[str, str], Mapping[str, float]] = BY_PROFILE,
) -> tuple[Gate, ...]:
    """The gates and claims of `asset` with the thresholds of `profile`.

    Raises:
        ValueError: when a threshold depends on the profile and has no value for this one.
    """

    def resolve(gate: Gate) -> Gate:
        thresholds = by_profile.get((gate.asset, gate.name))
        if thresholds is None:
            return gate
        if profile not in thresholds:
            raise ValueError(
                f"gate {gate.asset}.{gate.name} has no threshold for profile {profile!r}, only for "
                f"{', '.join(sorted(thresholds))}: add one to BY_PROFILE in forge_assets/gates.py"
            )
        return replace(gate, threshold=thresholds[profile])

    return tuple(resolve(gate) for gate in gates if gate.asset == asset)


def asset_checks(
    gates: Sequence[Gate] = GATES,
    by_profile: Mapping[tuple[str, str], Mapping[str, float]] = BY_PROFILE,
    assets: Sequence[str] | None = None,
) -> list[dg.AssetChecksDefinition]:
    """One blocking check `gate`, and `claims` where there are any, for each of `assets` (default: all).

    Raises:
        ValueError: when one of them has no blocking gate.
    """
    wanted = assets if assets is not None else list(dict.fromkeys(gate.asset for gate in gates))
    checks = []
    for asset in wanted:
        rows = [gate for gate in gates if gate.asset == asset]
        if not any(gate.blocking for gate in rows):
            raise ValueError(f"{asset} has no blocking gate: add a row to GATES in forge_assets/gates.py")
        checks.append(_check(asset, gates, by_profile, blocking=True))
        if not all(gate.blocking for gate in rows):
            checks.append(_check(asset, gates, by_profile, blocking=False))
    return checks


def _check(
    asset: str,
    gates: Sequence[Gate],
    by_profile: Mapping[tuple[str, str], Mapping[str, float]],
    *,
    blocking: bool,
) -> dg.AssetChecksDefinition:
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    @dg.asset_check(
        asset=dg.AssetKey(asset),
        name="gate" if blocking else "claims",
        blocking=blocking,
        required_resource_keys={"store", "tracking"},
        description=(
            f"What {asset} must fulfil before anything is built from it."
            if blocking
            else f"What {asset} promises; a broken promise is reported and blocks nothing."
        ),
    )
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        record = latest_materialization(context.instance, dg.AssetKey(asset))
        try:
            bundle = context.resources.store.open_materialized(asset, record)
            lineage = bundle.lineage()
            rows = [g for g in gates_for(asset, lineage.profile, gates, by_profile) if g.blocking == blocking]
        except ValueError as error:  # missing, damaged or without thresholds: nothing to pass
            return dg.AssetCheckResult(passed=False, severity=severity, description=str(error))
        verdicts = [judge(gate, lineage.metrics) for gate in rows]
        passed = all(verdict.passed for verdict in verdicts)
        if blocking and passed:
            context.resources.tracking.promote(asset, lineage.digest)
        return dg.AssetCheckResult(
            passed=passed,
            severity=severity,
            description="; ".join(v.describe() for v in verdicts if passed or not v.passed),
            metadata=_metadata(verdicts, lineage.digest),
        )

    return check


def _metadata(verdicts: Sequence[Verdict], digest: str) -> dict[str, dg.MetadataValue]:
    """Each value and threshold as a number, which Dagster plots over time, and all of them as one table."""
    metadata: dict[str, dg.MetadataValue] = {"digest": dg.MetadataValue.text(digest)}
    for verdict in verdicts:
        if verdict.value is not None and math.isfinite(verdict.value):  # GraphQL has no NaN
            metadata[verdict.gate.metric] = dg.MetadataValue.float(float(verdict.value))
        metadata[f"threshold/{verdict.gate.name}"] = dg.MetadataValue.float(float(verdict.gate.threshold))
    metadata["verdicts"] = dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "gate": verdict.gate.name,
                    "metric": verdict.gate.metric,
                    "value": "not measured" if verdict.value is None else f"{verdict.value:.6g}",
                    "required": f"{verdict.gate.direction} {verdict.gate.threshold:g}",
                    "against": verdict.gate.against,
                    "evidence": verdict.gate.evidence,
                    "passed": verdict.passed,
                }
            )
            for verdict in verdicts
        ]
    )
    return metadata
