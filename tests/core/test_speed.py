"""Estimates of training time: real steps at a shape, and the tokens that a profile trains on."""

import math
import time
from dataclasses import replace

import pytest

from training_core.nn.cognate import ShapeConfig
from training_core.profiles import nano, training_tokens
from training_core.training.loop import TrainingConfig
from training_core.training.speed import tokens_per_second

SHAPE = ShapeConfig(d_model=16, num_heads=2, d_ff=16, num_layers=2, memory_layers=[], max_seq_len=32)


def test_speed_is_that_of_a_step_within_the_measurement() -> None:
    """At least one step of at least one row was taken in the whole time, however busy the machine is."""
    started = time.monotonic()
    speed = tokens_per_second(SHAPE, 300, TrainingConfig(batch_size=4, seq_len=32), 0.2)
    assert math.isfinite(speed)
    assert speed * (time.monotonic() - started) >= 32


def test_training_tokens_are_those_of_all_models() -> None:
    profile = nano()
    trunk = profile.trunk
    without = training_tokens(profile)
    longer = trunk.training.model_copy(update={"steps": trunk.training.steps + 10})
    more = replace(profile, trunk=trunk.model_copy(update={"training": longer}))
    assert training_tokens(more) - without == 10 * trunk.training.batch_size * trunk.training.seq_len
    recursive = profile.cognate_reasoning.model_copy(
        update={"recursion": profile.cognate_reasoning.recursion.model_copy(update={"num_supervision": 3})}
    )
    training = recursive.training
    assert training_tokens(replace(profile, cognate_reasoning=recursive)) - without == pytest.approx(
        2 * training.steps * training.batch_size * training.seq_len
    )
