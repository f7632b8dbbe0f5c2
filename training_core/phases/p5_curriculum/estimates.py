"""Estimates of proportions and of their paired differences, with 95 % CIs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training_core.evaluation.intervals import paired_difference, wilson
from training_core.record import Estimate


def share(right: Sequence[bool]) -> Estimate:
    """Return the proportion of True values with Wilson's interval."""
    return wilson(sum(right), len(right))


def paired_gain(right: Sequence[bool], other: Sequence[bool]) -> Estimate:
    """Return the difference of two proportions on the same questions, with Tango's score interval."""
    return paired_difference(torch.tensor(right).double(), torch.tensor(other).double())
