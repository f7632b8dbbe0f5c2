"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations


def warmup_stable_decay(step: int, total: int, warmup_fraction: float, decay_fraction: float) -> float:
    """Return a factor in (0, 1]: linear warm-up, constant middle, linear decay towards 0 (Hu et al., 2024, MiniCPM,
    eq. 1).

    `step` counts from 0. The first step has factor 1 / warmup steps, the last 1 / (decay steps + 1).
    """
    warmup = max(1, round(total * warmup_fraction))
    decay = round(total * decay_fraction)
    rising = (step + 1) / warmup
    falling = (total - step) / (decay + 1)
    return min(1.0, rising, falling)
