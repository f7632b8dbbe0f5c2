"""Infrastructure used by the assets: the model store, tracking, progress reporting, and the rule of the quality gates.

Resources depend on Dagster and MLflow; the science in `training_core` depends on neither.
"""

import os
import re
from pathlib import Path


def forge_home() -> Path:
    """Return the folder for everything that is produced: `FORGE_HOME`, else `$DAGSTER_HOME/forge`.

    Raises:
        ValueError: when neither variable is set to an absolute path that a database can have.
    """
    home = os.environ.get("FORGE_HOME")
    if not home and (dagster_home := os.environ.get("DAGSTER_HOME")):
        home = str(Path(dagster_home) / "forge")
    if not home:
        raise ValueError("no place to keep models: set FORGE_HOME or DAGSTER_HOME to an absolute path")
    if not Path(home).is_absolute():
        raise ValueError(f"the forge home must be an absolute path, got {home!r}: set FORGE_HOME to one")
    require_addressable(Path(home))
    return Path(home)


def require_addressable(home: Path) -> None:
    """Check that Dagster and MLflow can keep their databases in `home`.

    Raises:
        ValueError: when the path means another one in an SQLite address: `?` ends it, and `%20` is a blank.
    """
    if re.search(r"\?|%[0-9A-Fa-f]{2}", str(home)):
        raise ValueError(
            f"Dagster and MLflow cannot keep their databases in {str(home)!r}: choose a path without '?', and without "
            "'%' before two hexadecimal digits (DAGSTER_HOME, FORGE_HOME)"
        )
