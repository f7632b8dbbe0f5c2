"""Check of a model file's configuration against its contents, before memory is allocated for the model."""

from __future__ import annotations

import torch

from training_core.nn.cognate import Cognate, CognateConfig, count_parameters


def require_stored(config: CognateConfig, num_stored: int) -> None:
    """Check that a model of this shape has no more weights than the file stores.

    An untrusted file can announce any shape in a few bytes, but must be large enough for the weights that it stores.

    Raises:
        ValueError: when the model has more weights.
    """
    with torch.device("meta"):
        wanted = count_parameters(Cognate(config))
    if wanted > num_stored:
        raise ValueError(
            f"the configuration describes a model of {wanted} weights and {num_stored} are stored: "
            "it does not belong to these weights; get the model again"
        )
