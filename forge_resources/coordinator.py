"""A run coordinator that rejects, at submission, runs whose inputs have a closed quality gate.

The phases check their gates as well; here the run is rejected before a process is started, and its page
says why. Configured in `dagster.yaml`; it runs inside the webserver and the daemon, so it loads no model
code.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import dagster as dg
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._serdes import ConfigurableClassData

from forge_resources.gatekeeping import REPORTS, closed_gates


class GatedRunCoordinator(QueuedRunCoordinator):
    """A `QueuedRunCoordinator` that checks `closed_gates` for every parent that the run does not make itself.

    `gate_table` names the module whose `gate_checks()` maps an asset to the checks that gate it.
    """

    def __init__(self, gate_table: str = "forge_assets.gates", **queue: Any) -> None:
        super().__init__(**queue)
        checks = importlib.import_module(gate_table).gate_checks()
        self._checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]] = checks

    @classmethod
    def config_type(cls) -> Any:
        """Return the configuration schema: the queue's options and `gate_table`."""
        table = dg.Field(str, is_required=False, default_value="forge_assets.gates")
        return {**dict(QueuedRunCoordinator.config_type()), "gate_table": table}  # type: ignore[arg-type]

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Build the coordinator from its section of `dagster.yaml`."""
        return cls(inst_data=inst_data, **config_value)

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        """Queue the run, or mark it failed with the closed gates as the reason."""
        run = context.dagster_run
        if run.status == dg.DagsterRunStatus.NOT_STARTED:
            reasons = [
                reason
                for child, parents in self._gated_parents(context).items()
                for reason in closed_gates(self._instance, parents, self._checks, child)
            ]
            if reasons:
                self._instance.report_run_failed(
                    run, "refused, quality gate closed: " + "; ".join(dict.fromkeys(reasons))
                )
                refused = self._instance.get_run_by_id(run.run_id)
                assert refused is not None, f"run {run.run_id} vanished while it was refused"
                return refused
        return super().submit_run(context)

    def _gated_parents(self, context: SubmitRunContext) -> dict[str, list[dg.AssetKey]]:
        """Map the assets that the run makes to their gated parents, except those that it makes itself.

        Assets that only report are exempt: they may be made although a gate upstream is closed.
        """
        graph, run = context.workspace.asset_graph, context.dagster_run
        selected = set(run.asset_selection or ())
        if not run.asset_selection and run.remote_job_origin is not None:  # a job launched as a whole
            origin = run.remote_job_origin.repository_origin
            location = context.workspace.get_code_location(origin.code_location_origin.location_name)
            repository = location.get_repository(origin.repository_name)
            selected = set(repository.get_asset_keys_in_job(run.job_name))
        nodes = [graph.get(key) for key in sorted(selected) if graph.has(key)]
        return {
            node.key.to_user_string(): sorted((node.parent_keys & self._checks.keys()) - selected)
            for node in nodes
            if REPORTS not in node.tags
        }
