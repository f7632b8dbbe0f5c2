"""Shares and paired differences of shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training_core.evaluation.intervals import difference_of_rates, wilson
from training_core.record import Estimate


def share(right: Sequence[bool]) -> Estimate:
    """The share that is right, with Wilson's interval."""
    return wilson(sum(right), len(right))


def paired_gain(right: Sequence[bool], other: Sequence[bool]) -> Estimate:
    """Difference of two shares on the same questions, 95 % bootstrap over questions."""
    ones = torch.ones(len(right), dtype=torch.float64)
    return difference_of_rates(torch.tensor(right).double(), torch.tensor(other).double(), ones)
