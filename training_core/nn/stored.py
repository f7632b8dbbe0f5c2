"""A configuration held against what a file holds, before memory is taken for the model that it describes."""

from __future__ import annotations

import torch

from training_core.nn.cognate import Cognate, CognateConfig, count_parameters


def require_stored(config: CognateConfig, num_stored: int) -> None:
    """Check that a model of this shape has no more weights than were stored.

    A file from a stranger can announce any shape in a few bytes; what it holds, it has to be long enough for.

    Raises:
        ValueError: when there are more.
    """
    with torch.device("meta"):
        wanted = count_parameters(Cognate(config))
    if wanted > num_stored:
        raise ValueError(
            f"the configuration describes a model of {wanted} weights and {num_stored} are stored: "
            "it is not the one that these weights were written with; get the model again"
        )
