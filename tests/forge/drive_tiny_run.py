"""Do what `forge run` does on a small forge, as a separate process that a test can kill.

Arguments: the configuration as JSON; the module of the forge (default: tiny_forge); the assets to make (default: all).
"""

import importlib
import json
import sys
import warnings

warnings.simplefilter("ignore")

import dagster as dg  # noqa: E402
from rich.console import Console  # noqa: E402

from forge_assets.freshness import plan, resolve_config  # noqa: E402
from forge_assets.graph_view import Forge  # noqa: E402
from forge_assets.run_graph import execute, release_dead_runs, terminal  # noqa: E402
from forge_resources.model_store import ModelStore  # noqa: E402

if __name__ == "__main__":
    overrides = json.loads(sys.argv[1])
    location = importlib.import_module(sys.argv[2] if len(sys.argv) > 2 else "tiny_forge")
    with dg.DagsterInstance.get() as instance:
        forge = Forge(location.defs, instance, ModelStore(), location.GATES)
        release_dead_runs(instance)
        configs = resolve_config(forge, overrides, select=sys.argv[3:])
        steps = plan(forge, configs, select=sys.argv[3:])
        with terminal() as stream:
            outcome = execute(forge, steps, configs, Console(file=stream))
    print(json.dumps({name: getattr(outcome, name) for name in ("run_id", "made", "problems", "interrupted")}))
