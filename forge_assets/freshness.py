"""The plan of a run: which assets are fresh, which are stale and must be made, and which only need to be judged.

An asset is fresh when the `forge/inputs` digest of its latest materialization equals that of its current code,
configuration and inputs, the store still holds that version, and nothing upstream is about to change.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, ValidationError

from forge_assets.factory import CONFIG_CLASS
from forge_assets.forge_report import report_inputs
from forge_assets.graph_view import Forge, UserError
from forge_resources.gatekeeping import REPORTS, completed_verdict, judge_latest, latest_materialization
from forge_resources.model_store import recorded_text
from training_core.config import paths, suggestion, unknown_paths
from training_core.gates import judge
from training_core.store.identity import inputs_digest

Action = Literal["make", "judge", "keep", "closed"]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """The action planned for one asset.

    make: the asset is stale. judge: it is fresh, but its checks have to run. keep: there is nothing to do. closed: it
    is fresh but its gate failed, or it cannot be made, for `reason`. `inputs` is the digest of what it would be made
    from, None while an upstream asset has to be made first.
    """

    asset: str
    action: Action
    reason: str
    inputs: str | None = None


def resolve_config(forge: Forge, overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, BaseModel]:
    """Return the validated configuration of every asset: the profile's values with `overrides` (asset to fields).

    Raises:
        UserError: for an asset or a field that does not exist, or a value out of its bounds.
    """
    known = forge.assets()
    for asset, values in overrides.items():
        if asset not in known:
            raise UserError(f"the configuration names {asset!r}; assets are {', '.join(known)}")
        if not isinstance(values, Mapping):
            raise UserError(f"the configuration of {asset} must be fields with values, got {values!r}")
    classes = {asset: _config_class(forge, asset) for asset in known}
    for asset, values in overrides.items():
        if unknown := unknown_paths(classes[asset], values):
            known_paths = list(paths(classes[asset]))
            problem = "; ".join(f"{path}: there is no such value, {suggestion(path, known_paths)}" for path in unknown)
            raise UserError(f"the configuration of {asset} is refused: {problem}")
    run_config = {"ops": {asset: {"config": dict(values)} for asset, values in overrides.items()}}
    try:
        complete = dg.validate_run_config(forge.job(), run_config)
    except dg.DagsterInvalidConfigError as error:
        raise UserError("; ".join(problem.message for problem in error.errors)) from error
    configs: dict[str, BaseModel] = {}
    for asset in known:
        try:
            configs[asset] = classes[asset](**complete["ops"][asset]["config"])
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, e['loc'])) or asset}: {e['msg']}" for e in error.errors())
            raise UserError(f"the configuration of {asset} is refused: {'; '.join(problems)}") from error
    return configs


def _config_class(forge: Forge, asset: str) -> type[BaseModel]:
    node = forge.definitions.resolve_asset_graph().get(dg.AssetKey(asset))
    module, _, name = str(node.metadata[CONFIG_CLASS]).partition(":")
    config: type[BaseModel] = getattr(importlib.import_module(module), name)
    return config


def plan(
    forge: Forge,
    configs: Mapping[str, BaseModel],
    *,
    select: Sequence[str] = (),
    force: Sequence[str] = (),
) -> list[PlannedStep]:
    """Return one step for each selected asset (default: all) in topological order.

    Raises:
        UserError: when `select` or `force` names an asset that does not exist.
    """
    known = forge.assets()
    if unknown := sorted({*select, *force} - set(known)):
        raise UserError(f"there is no asset {', '.join(unknown)}; assets are {', '.join(known)}")
    steps: dict[str, PlannedStep] = {}
    for asset in known:
        if not select or asset in select:
            steps[asset] = _step(forge, asset, configs[asset], steps, asset in force)
    return list(steps.values())


def _step(forge: Forge, asset: str, config: BaseModel, steps: Mapping[str, PlannedStep], forced: bool) -> PlannedStep:
    parents = forge.inputs_of(asset)
    node = forge.definitions.resolve_asset_graph().get(dg.AssetKey(asset))
    if REPORTS in node.tags:
        return _report_step(forge, asset, config, steps, forced)
    if closed := [p for p in parents if p in steps and steps[p].action == "closed"]:
        return PlannedStep(asset, "closed", f"{', '.join(closed)} cannot be built upon")
    if changing := [p for p in parents if p in steps and steps[p].action == "make"]:
        return PlannedStep(asset, "make", f"made from {', '.join(changing)}, which is made first")
    for parent in (p for p in parents if p not in steps):
        gate = [check for check in forge.checks_of(parent) if check.name == "gate"]
        judged = judge_latest(forge.instance, dg.AssetKey(parent), gate)
        if judged.record is None or (gate and judged.closed):
            return PlannedStep(asset, "closed", f"refused: {'; '.join(judged.closed[:1])}; forge run --select {parent}")
    digests = {p: recorded_text(p, latest_materialization(forge.instance, dg.AssetKey(p)), "digest") for p in parents}
    inputs = inputs_digest(str(node.code_version), config, digests)
    if (reason := "asked for by --force" if forced else _stale(forge, asset, inputs)) is not None:
        return PlannedStep(asset, "make", reason, inputs)
    return _judged(forge, asset, inputs)


def _report_step(
    forge: Forge, asset: str, config: BaseModel, steps: Mapping[str, PlannedStep], forced: bool
) -> PlannedStep:
    """Return the step of a report, which no gate blocks; it is fresh until something is made, judged or overridden."""
    if any(step.action in ("make", "judge") for step in steps.values()):
        return PlannedStep(asset, "make", "reports what is made or judged first")
    inputs = report_inputs(forge, config)
    reason = (
        "asked for by --force" if forced else _stale(forge, asset, inputs, "something was made, judged or overridden")
    )
    return PlannedStep(asset, "keep", "fresh", inputs) if reason is None else PlannedStep(asset, "make", reason, inputs)


def _stale(
    forge: Forge, asset: str, inputs: str, changed: str = "its code, configuration or inputs changed"
) -> str | None:
    """Return why the latest materialization of `asset` is stale with respect to `inputs`, or None if it is fresh."""
    record = latest_materialization(forge.instance, dg.AssetKey(asset))
    if record is None:
        return "never made"
    try:
        recorded = recorded_text(asset, record, "forge/inputs")
    except ValueError:
        return "made before inputs were recorded"
    if recorded != inputs:
        return changed
    try:
        if forge.checks_of(asset):
            forge.store.open_materialized(asset, record)
        else:
            forge.store.folder(asset, recorded_text(asset, record, "digest"), verify=True)
    except ValueError as error:
        return f"the stored version is missing or damaged ({error})"
    return None


def _judged(forge: Forge, asset: str, inputs: str) -> PlannedStep:
    """Return the step of a fresh asset: keep it, judge it, or stop at its closed gate."""
    record = latest_materialization(forge.instance, dg.AssetKey(asset))
    checks = forge.checks_of(asset)
    if record is None or not checks:
        return PlannedStep(asset, "keep", "fresh", inputs)
    lineage = forge.store.open_materialized(asset, record).lineage()
    closed, kept = "", "fresh, gate passed"
    for check in checks:
        verdict = completed_verdict(forge.instance, check, record.storage_id)
        if verdict is None:
            return PlannedStep(asset, "judge", f"{check.name} has no completed verdict", inputs)
        rows = [row for row in forge.rows(asset, lineage.profile) if row.blocking == (check.name == "gate")]
        passed = all(judge(row, lineage.metrics).passed for row in rows)
        thresholds = {f"threshold/{row.name}": row.threshold for row in rows}
        # A verdict holds only for the thresholds it was given with: after an edit of the table, judge again.
        if passed != verdict.passed or any(_number(verdict, k) != v for k, v in thresholds.items()):
            return PlannedStep(asset, "judge", f"the table of {check.name} changed", inputs)
        if check.name == "gate" and not verdict.passed:
            override = judge_latest(forge.instance, dg.AssetKey(asset), [check]).override
            closed = "" if override is not None else verdict.description or "its gate failed"
            kept = kept if override is None else f"fresh, gate {override.describe()}"
    return PlannedStep(asset, "closed", closed, inputs) if closed else PlannedStep(asset, "keep", kept, inputs)


def _number(verdict: Any, name: str) -> float | None:
    value = verdict.metadata.get(name)
    return None if value is None else float(value.value)
