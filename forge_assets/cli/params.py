"""`forge params`: the parameters of a profile's model, part by part."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from forge_assets.cli.common import Profile, errors
from forge_assets.config_file import read_overrides


def params(
    profile: Profile = "nano",
    config: Annotated[
        Path | None, typer.Option(help="YAML file as for forge run: trunk.shape and tokenizer.vocab_size are used.")
    ] = None,
) -> None:
    """Count the parameters of the trunk by part, without making it.

    A small corpus may give fewer tokens than `tokenizer.vocab_size` allows; the model then is smaller by their rows.
    """
    with errors():
        import torch

        from training_core.config import leaves, with_values
        from training_core.nn.cognate import Cognate, CognateConfig, parameters_by_part
        from training_core.profiles import profile_of

        given, preset = read_overrides(config), profile_of(profile)
        trunk = with_values(preset.trunk, dict(leaves(given.get("trunk", {}), type(preset.trunk))))
        tokenizer = with_values(preset.tokenizer, dict(leaves(given.get("tokenizer", {}), type(preset.tokenizer))))
        with torch.device("meta"):
            model = Cognate(CognateConfig(vocab_size=tokenizer.vocab_size, **trunk.shape.model_dump()))
        parts = parameters_by_part(model)
        total = sum(parts.values())
        console = Console(highlight=False)
        for part, count in (parts | {"in all": total}).items():
            console.print(f"{part:<30}{count:>12,}{count / total:>8.1%}{4 * count / 1e6:>10.2f} MB in fp32")
