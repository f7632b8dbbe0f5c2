"""The plan of a run: which assets are fresh, which are stale and must be made, and which only need to be judged.

An asset is fresh when the `forge/inputs` digest of its latest materialization equals that of its current code,
configuration and inputs, the store still holds that version, and nothing upstream is about to change.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel

from forge_assets import kept_values
from forge_assets.factory import CONFIG_CLASS, READS, sources_of
from forge_assets.forge_report import report_inputs
from forge_assets.graph_view import Forge, UserError
from forge_assets.launchpad import config_problem, selected_profile
from forge_resources.gatekeeping import (
    MEASURED_ON,
    REPORTS,
    blocked_by,
    completed_verdict,
    judge_latest,
    latest_materialization,
    verdict_rows,
)
from forge_resources.model_store import recorded_text
from training_core.config import ConfigError, paths, shown, suggestion, unknown_paths, validated
from training_core.gates import judge
from training_core.store.identity import inputs_digest

Action = Literal["make", "judge", "keep", "closed"]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """The action planned for one asset.

    make: the asset is stale. judge: it is fresh, but its checks have to run. keep: there is nothing to do. closed: it
    is fresh but its gate failed, it is fresh but made from something outdated, or it cannot be made, for `reason`.
    `inputs` is the digest of what it would be made from, None while an upstream asset has to be made first. `note` says
    what a person should know although nothing is done about it: a source that is gone, an outdated ancestor. `gated`:
    closed by its own failed gate. `blocks`: the only models that its failed gate blocks; it is kept for the others.
    """

    asset: str
    action: Action
    reason: str
    inputs: str | None = None
    note: str = ""
    gated: bool = False
    blocks: tuple[str, ...] = ()


def resolve_config(
    forge: Forge,
    overrides: Mapping[str, Mapping[str, Any]],
    *,
    select: Sequence[str] = (),
    defaults: bool = False,
) -> dict[str, BaseModel]:
    """Return the validated configuration of every asset: the profile's values with `overrides` (asset to fields).

    An asset without overrides keeps the values that it was made with (`kept_values`), unless the run goes back to the
    profile's `defaults`.

    Raises:
        UserError: for an asset or a field that does not exist, a value out of its bounds, or kept values of an asset in
            `select` (default: all) that cannot be used.
    """
    known = forge.assets()
    for asset, values in overrides.items():
        if asset not in known:
            raise UserError(
                f"the configuration names {asset!r}, and there is no such asset: {suggestion(asset, known)}"
            )
        if not isinstance(values, Mapping):
            raise UserError(f"{asset}: must be fields with values, got {shown(values)}")
    classes = {asset: _config_class(forge, asset) for asset in known}
    for asset, values in overrides.items():
        if unknown := unknown_paths(classes[asset], values):
            known_paths = list(paths(classes[asset]))
            raise UserError(
                "; ".join(
                    f"{asset}.{path}: there is no such value, {suggestion(path, known_paths)}" for path in unknown
                )
            )
    configs = _complete(forge, classes, overrides)
    for asset in known:
        kept = kept_values.recorded(latest_materialization(forge.instance, dg.AssetKey(asset)))
        try:
            configs[asset] = kept_values.in_effect(
                asset, configs[asset], overrides.get(asset, {}), kept, selected_profile(), defaults=defaults
            )
        except UserError:
            if not select or asset in select:
                raise
    return configs


def kept_lines(forge: Forge, overrides: Mapping[str, Any], assets: Sequence[str]) -> list[str]:
    """Return a line for each of `assets` that keeps values unlike its profile's."""
    kept = {name: kept_values.recorded(latest_materialization(forge.instance, dg.AssetKey(name))) for name in assets}
    return [
        f"{name} keeps {one.describe()} (--defaults: the profile's)"
        for name, one in kept.items()
        if one.values and name not in overrides
    ]


def run_values(forge: Forge, configs: Mapping[str, BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the values, nested by section, that a run must be given for `configs` to take effect."""
    defaults = _complete(forge, {asset: type(config) for asset, config in configs.items()}, {})
    return {
        asset: kept_values.given_values(
            config, defaults[asset], kept_values.recorded(latest_materialization(forge.instance, dg.AssetKey(asset)))
        )
        for asset, config in configs.items()
    }


def _complete(
    forge: Forge, classes: Mapping[str, type[BaseModel]], overrides: Mapping[str, Mapping[str, Any]]
) -> dict[str, BaseModel]:
    """Return the profile's configuration of every asset, with `overrides`."""
    run_config = {"ops": {asset: {"config": dict(values)} for asset, values in overrides.items()}}
    try:
        complete = dg.validate_run_config(forge.job(), run_config)
    except dg.DagsterInvalidConfigError as error:
        raise UserError("; ".join(map(config_problem, error.errors))) from error
    configs: dict[str, BaseModel] = {}
    for asset, config in classes.items():
        try:
            configs[asset] = validated(config, complete["ops"][asset]["config"], asset)
        except ConfigError as error:
            raise UserError(str(error)) from error
    return configs


def _config_class(forge: Forge, asset: str) -> type[BaseModel]:
    node = forge.definitions.resolve_asset_graph().get(dg.AssetKey(asset))
    config: type[BaseModel] = _defined(str(node.metadata[CONFIG_CLASS]))
    return config


def _defined(name: str) -> Any:
    """Return what `forge_assets.factory.name_of` named."""
    module, _, qualified = name.partition(":")
    return getattr(importlib.import_module(module), qualified)


def plan(
    forge: Forge,
    configs: Mapping[str, BaseModel],
    *,
    select: Sequence[str] = (),
    force: Sequence[str] = (),
    controls: bool = False,
) -> list[PlannedStep]:
    """Return one step for each selected asset (default: all, with or without `controls`) in topological order.

    A selected asset that is fresh, but was made from something that a run of the whole graph would make again, is
    `closed`: it cannot be brought up to date alone. If it is made all the same, its note says so.

    Raises:
        UserError: when `select` or `force` names an asset that does not exist.
    """
    known = forge.assets()
    if unknown := sorted({*select, *force} - set(known)):
        raise UserError(f"there is no asset {', '.join(unknown)}; assets are {', '.join(known)}")
    left_out = [] if controls or select else [name for name in forge.controls() if name not in force]
    steps = _steps(forge, configs, [asset for asset in known if asset not in left_out], force)
    if not select:
        return list(steps.values())
    alone = _steps(forge, configs, [asset for asset in known if asset in select], force)
    return [_with_ancestors(forge, step, steps, select) for step in alone.values()]


def _steps(
    forge: Forge, configs: Mapping[str, BaseModel], assets: Sequence[str], force: Sequence[str]
) -> dict[str, PlannedStep]:
    steps: dict[str, PlannedStep] = {}
    for asset in assets:
        steps[asset] = _step(forge, asset, configs[asset], steps, asset in force)
    return steps


def _with_ancestors(
    forge: Forge, step: PlannedStep, whole: Mapping[str, PlannedStep], select: Sequence[str]
) -> PlannedStep:
    """Add to the step of a selected asset which ancestors a run of the `whole` graph would make first."""
    above: set[str] = set()
    frontier = [] if _reports(forge, step.asset) else forge.inputs_of(step.asset)
    while frontier:
        above.add(asset := frontier.pop())
        frontier += [parent for parent in forge.inputs_of(asset) if parent not in above]
    stale = [asset for asset in whole if asset in above and asset not in select and whole[asset].action == "make"]
    if not stale or (step.action == "closed" and step.inputs is None):
        return step
    why = "; ".join(f"{asset}: {whole[asset].reason}" for asset in stale if whole[asset].inputs is not None)
    between = [asset for asset in whole if asset in stale or asset in select]
    command = f"forge run {' '.join(f'--select {asset}' for asset in between)}"
    note = f"{step.asset} is made from something outdated ({why}): {command} makes what lies between"
    if step.action == "keep":
        return replace(step, action="closed", reason=note)
    return replace(step, note=note)


def _reports(forge: Forge, asset: str) -> bool:
    return REPORTS in forge.definitions.resolve_asset_graph().get(dg.AssetKey(asset)).tags


def _step(forge: Forge, asset: str, config: BaseModel, steps: Mapping[str, PlannedStep], forced: bool) -> PlannedStep:
    parents = forge.inputs_of(asset)
    node = forge.definitions.resolve_asset_graph().get(dg.AssetKey(asset))
    if _reports(forge, asset):
        return _report_step(forge, asset, config, steps, forced)
    above = {parent: steps[parent] for parent in parents if parent in steps}
    if closed := [p for p, step in above.items() if step.action == "closed" or asset in step.blocks]:
        return PlannedStep(asset, "closed", f"{', '.join(closed)} cannot be built upon")
    if changing := [parent for parent, step in above.items() if step.action == "make"]:
        return PlannedStep(asset, "make", f"made from {', '.join(changing)}, which is made first")
    for parent in (p for p in parents if p not in steps):
        gate = [check for check in forge.checks_of(parent) if check.name == "gate"]
        judged = judge_latest(forge.instance, dg.AssetKey(parent), gate, asset)
        if judged.record is None or (gate and judged.closed):
            return PlannedStep(asset, "closed", f"refused: {'; '.join(judged.closed[:1])}; forge run --select {parent}")
    digests = {p: recorded_text(p, latest_materialization(forge.instance, dg.AssetKey(p)), "digest") for p in parents}
    sources, change, gone = _outside(forge, asset, config)
    inputs = inputs_digest(str(node.code_version), config, digests | sources)
    changed = change or "its code, configuration or inputs changed"
    if (reason := "asked for by --force" if forced else _stale(forge, asset, inputs, changed)) is not None:
        return PlannedStep(asset, "make", reason, inputs)
    return replace(_judged(forge, asset, inputs), note=gone)


def _outside(forge: Forge, asset: str, config: BaseModel) -> tuple[dict[str, str], str, str]:
    """Return what `asset` reads from outside the graph, how that changed, and a note on what is gone.

    Where sources are only gone, the recorded ones are returned: what was made from them is kept, and the note says so.
    """
    node = forge.definitions.resolve_asset_graph().get(dg.AssetKey(asset))
    if READS not in node.metadata:
        return {}, "", ""
    recorded = sources_of(latest_materialization(forge.instance, dg.AssetKey(asset)))
    reads: Callable[[BaseModel], Mapping[str, str]] = _defined(str(node.metadata[READS]))
    try:
        now, problem = dict(reads(config)), ""
    except ValueError as error:
        now, problem = {}, str(error)
    gone = sorted(recorded.keys() - now.keys())
    added = sorted(now.keys() - recorded.keys())
    other = sorted(name for name in now.keys() & recorded.keys() if now[name] != recorded[name])
    if gone and not added and not other:
        kept = f"{asset}: {problem or _listed(gone) + ' is gone'}; the stored {asset} made from it is kept"
        return recorded, "", kept if problem else f"{kept} (--force {asset} reads what is left)"
    changes = (("is new", added), ("changed", other), ("is gone", gone))
    change = ", ".join(f"its source {_listed(names)} {what}" for what, names in changes if names)
    return now, change, ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


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
        if forge.makes_model(asset):
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
    some: tuple[str, ...] = ()
    closed, kept = "", "fresh, gate passed"
    for check in checks:
        verdict = completed_verdict(forge.instance, check, record.storage_id)
        if verdict is None:
            return PlannedStep(asset, "judge", f"{check.name} has no completed verdict", inputs)
        table = forge.rows(asset, lineage.profile, lineage.metrics)
        rows = [row for row in table if row.blocking == (check.name == "gate")]
        passed = all(judge(row, lineage.metrics).passed for row in rows)
        thresholds = {f"threshold/{row.name}": row.threshold for row in rows}
        if MEASURED_ON not in verdict.metadata:
            return PlannedStep(asset, "judge", f"the verdict of {check.name} does not name its data", inputs)
        # A verdict holds only for the thresholds it was given with: after an edit of the table, judge again.
        blocks = {str(row["gate"]): str(row.get("blocks") or "") for row in verdict_rows(verdict)}
        same = all(_number(verdict, k) == v for k, v in thresholds.items()) and passed == verdict.passed
        if not same or any(blocks.get(row.name) != ", ".join(row.blocks) for row in rows):
            return PlannedStep(asset, "judge", f"the table of {check.name} changed", inputs)
        if check.name == "gate" and not verdict.passed:
            override = judge_latest(forge.instance, dg.AssetKey(asset), [check]).override
            closed = "" if override is not None else verdict.description or "its gate failed"
            kept = kept if override is None else f"fresh, gate {override.describe()}"
            some = () if override is not None else blocked_by(verdict) or ()
    if some:
        return PlannedStep(asset, "keep", f"fresh, gate closed for {', '.join(some)}: {closed}", inputs, blocks=some)
    return (
        PlannedStep(asset, "closed", closed, inputs, gated=True) if closed else PlannedStep(asset, "keep", kept, inputs)
    )


def _number(verdict: Any, name: str) -> float | None:
    value = verdict.metadata.get(name)
    return None if value is None else float(value.value)
