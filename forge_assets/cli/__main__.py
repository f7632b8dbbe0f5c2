"""Entry point: `python -m forge_assets.cli` runs `forge`."""

from forge_assets.cli import app

app()
