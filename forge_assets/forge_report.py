"""`forge_report`: the ledger and the history of every gate as one HTML page, and the latest verdicts as JUnit XML.

The report is downstream of the last model, so a run of the whole graph ends with it. It is not a phase: nothing is
built from it, and it is needed most when a gate has failed. Closed gates upstream and the run coordinator therefore do
not block it (it carries the tag `REPORTS`). It reports on whatever exists, and is fresh until a model is made, judged
or overridden. One limit is Dagster's: in the run in which a gate closes, every asset downstream of it is skipped,
including the report. The next run makes it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from forge_assets import kept_values
from forge_assets.factory import CONFIG_CLASS, RESOURCES, config_in_effect, name_of, not_retried
from forge_assets.gate_history import AssetGates, collect_gates
from forge_assets.gates import GATES
from forge_assets.graph_view import Forge
from forge_assets.junit import junit_xml
from forge_assets.launchpad import launchpad_fields, selected_profile
from forge_assets.ledger import collect
from forge_assets.report.history import history_sections
from forge_assets.report.page import html_page
from forge_assets.report.templates import templates_digest
from forge_resources.gatekeeping import REPORTS, judgements_digest, latest_digest
from forge_resources.model_store import ModelStore
from training_core.gates import Gate
from training_core.store.identity import code_digest, digest_folder

PAGE, JUNIT = "report.html", "gates.xml"
CODE = ("forge_assets.forge_report",)


class ReportConfig(BaseModel):
    """Configuration of the report."""

    model_config = ConfigDict(frozen=True)

    verdicts: int = Field(default=50, ge=1, description="Number of verdicts shown per gate, newest first.")


def report_asset(
    definitions: Callable[[], dg.Definitions],
    after: Sequence[str],
    *,
    gates: Sequence[Gate] = GATES,
) -> dg.AssetsDefinition:
    """Return the asset `forge_report`, downstream of `after`; it reports on every model in `definitions()`."""

    @dg.asset(
        name="forge_report",
        deps=list(after),
        description=f"The ledger and the history of every gate ({PAGE}), and the latest verdicts ({JUNIT}).",
        group_name="report",
        owners=["team:agent-forge"],
        kinds={"python", "html"},
        code_version=_code(ReportConfig.model_json_schema()),
        metadata={CONFIG_CLASS: name_of(ReportConfig)},
        tags={REPORTS: "true"},
        config_schema=launchpad_fields(ReportConfig),
        required_resource_keys=set(RESOURCES),
    )
    def forge_report(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        with not_retried():
            config = config_in_effect(context, "forge_report", ReportConfig())
            forge = Forge(definitions(), context.instance, context.resources.store, gates)
            inputs = report_inputs(forge, config)
            return _write(forge, config, inputs)

    return forge_report


def report_inputs(forge: Forge, config: BaseModel) -> str:
    """Return a digest of the report's inputs: its code and configuration, all materializations, verdicts, overrides."""
    checks = [check for asset in forge.assets() for check in forge.checks_of(asset)]
    controls = {name: latest_digest(forge.instance, dg.AssetKey(name)) for name in forge.controls()}
    return f"{_code({**config.model_dump(mode='json'), **controls})}-{judgements_digest(forge.instance, checks)}"


def _code(config: Mapping[str, Any]) -> str:
    """Return a digest of the report's modules and templates, and of `config`."""
    return code_digest(CODE, extra={"config": dict(config), "templates": templates_digest()})


def _write(forge: Forge, config: ReportConfig, inputs: str) -> dg.MaterializeResult[Any]:
    models = collect_gates(forge)
    store: ModelStore = forge.store
    with store.stage("forge_report") as staged:
        staged.mkdir()
        page = html_page(collect(forge), history_sections(models, config.verdicts))
        (staged / PAGE).write_text(page, encoding="utf-8")
        (staged / JUNIT).write_text(junit_xml(models), encoding="utf-8")
        digest = digest_folder(staged)
        folder = store.commit("forge_report", staged, digest, "data")
    metadata: dict[str, Any] = {
        "digest": digest,
        "forge/inputs": inputs,
        "page": dg.MetadataValue.path(str(folder / PAGE)),
        "junit": dg.MetadataValue.path(str(folder / JUNIT)),
        **_counts(models),
        **kept_values.described(config, ReportConfig(), selected_profile()),
    }
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest))


def _counts(models: Sequence[AssetGates]) -> dict[str, int]:
    latest = [entry for gates in models for entry in gates.latest()]
    return {
        "gates_passed": sum(e.passed for e in latest if e.blocking),
        "gates_failed": sum(not e.passed for e in latest if e.blocking),
        "gates_overridden": sum(e.override is not None for e in latest),
        "claims_held": sum(e.passed for e in latest if not e.blocking),
        "claims_failed": sum(not e.passed for e in latest if not e.blocking),
    }
