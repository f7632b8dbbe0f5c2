"""`python -m forge_assets.cli` is `forge`."""

from forge_assets.cli import app

app()
