"""What `forge run` does, on the tiny forge: run as a process of its own, so that it can be killed."""

import json
import sys
import warnings

warnings.simplefilter("ignore")

import dagster as dg  # noqa: E402
import tiny_forge  # noqa: E402
from rich.console import Console  # noqa: E402

from forge_assets.freshness import Forge, plan, resolve_config  # noqa: E402
from forge_assets.run_graph import execute, release_dead_runs, terminal  # noqa: E402
from forge_resources.model_store import ModelStore  # noqa: E402

if __name__ == "__main__":
    overrides = json.loads(sys.argv[1])
    with dg.DagsterInstance.get() as instance:
        forge = Forge(tiny_forge.defs, instance, ModelStore(), tiny_forge.GATES, {})
        release_dead_runs(instance)
        steps = plan(forge, resolve_config(forge, overrides))
        with terminal() as stream:
            outcome = execute(forge, steps, overrides, Console(file=stream))
    print(json.dumps({"run": outcome.run_id, "made": outcome.made, "interrupted": outcome.interrupted}))
