"""A full run of the tiny forge with tracking on, to see what it records: a step crashes, one is refused, and a report
is written. Run as a separate process in its own home, with a secret in its environment.
"""

import json
import os
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import dagster as dg  # noqa: E402
import tiny_forge  # noqa: E402
from dagster._core.definitions.reconstruct import reconstructable  # noqa: E402

from forge_assets.graph_view import Forge  # noqa: E402
from forge_assets.ledger import collect  # noqa: E402
from forge_assets.report import html_page  # noqa: E402
from forge_resources.launcher import Launcher  # noqa: E402
from forge_resources.model_store import ModelStore  # noqa: E402
from forge_resources.tracking import MlflowTracking  # noqa: E402


def everything() -> dg.JobDefinition:
    """Return a job of all models with tracking."""
    return dg.Definitions(
        assets=tiny_forge.ASSETS,
        asset_checks=tiny_forge.CHECKS,
        jobs=[dg.define_asset_job("everything", executor_def=dg.in_process_executor)],
        resources={"store": ModelStore(), "tracking": MlflowTracking(), "launcher": Launcher()},
    ).resolve_job_def("everything")


if __name__ == "__main__":
    home = Path(os.environ["DAGSTER_HOME"])
    with dg.DagsterInstance.get() as instance:
        # left crashes once and is retried; right fails its gate, so its child is refused
        configs = {"left": {"steps": 4, "crash_at": 2, "figure": True}, "right": {"value": 2.0}}
        ops = {name: {"config": values} for name, values in configs.items()}
        tags = {"given/away": os.environ["GIVEN_AWAY"]}  # a positive control for the search
        job = reconstructable(everything)
        with dg.execute_job(job, instance, run_config={"ops": ops}, tags=tags) as result:
            made = sorted(e.asset_key.to_user_string() for e in result.get_asset_materialization_events())
            failed = sorted(e.step_key for e in result.filter_events(lambda e: e.is_step_failure))
        forge = Forge(tiny_forge.defs, instance, ModelStore(), tiny_forge.GATES)
        (home / "report.html").write_text(html_page(collect(forge)))
        (home / "report.json").write_text(json.dumps(collect(forge).as_json()))
        events = instance.all_logs(result.run_id)
        (home / "events.json").write_text(json.dumps([event.to_json() for event in events]))
    sys.stdout.write(json.dumps({"success": result.success, "made": made, "failed": failed}))
