"""Infrastructure used by the assets: the model store, tracking, progress reporting, and the rule of the quality gates.

Resources depend on Dagster and MLflow; the science in `training_core` depends on neither.
"""

import os
from pathlib import Path


def forge_home() -> Path:
    """Return the folder for everything that is produced: `FORGE_HOME`, else `$DAGSTER_HOME/forge`.

    Raises:
        ValueError: when neither variable is set to an absolute path.
    """
    home = os.environ.get("FORGE_HOME")
    if not home and (dagster_home := os.environ.get("DAGSTER_HOME")):
        home = str(Path(dagster_home) / "forge")
    if not home:
        raise ValueError("no place to keep models: set FORGE_HOME or DAGSTER_HOME to an absolute path")
    if not Path(home).is_absolute():
        raise ValueError(f"the forge home must be an absolute path, got {home!r}: set FORGE_HOME to one")
    return Path(home)
