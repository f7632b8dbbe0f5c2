"""Where to think: signals that the model provides at each position, and the rules that turn them into a decision.

Signals are read after token x_j and do not depend on x_{j+1}:

    entropy      of the prediction for x_{j+1}
    dispersion   of the last core block's attention
    loss         -log p(x_j), the loss on x_j itself
    surprise     norm of the memory's gradient at x_j (Titans, arXiv:2501.00663, eq. 8), mean over memories

Each signal is replaced by its percentile among held-out positions, which covers [0, 1], so that a threshold on it
corresponds to a share of the text. The difficulty is .4 entropy + .3 dispersion + .3 loss. A model without memory
has surprise 0.

Shape legend: B batch, S sequence, Q quantiles of a table.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training_core.nn.block import TitansBlock
from training_core.nn.cognate import Cognate, Trace

SIGNALS = ("entropy", "dispersion", "loss", "surprise")
DIFFICULTY = {"entropy": 0.4, "dispersion": 0.3, "loss": 0.3}
TABLE = 129
# The percentile of a missing signal: the loss of the first token, or surprise without memory.
UNKNOWN = {"entropy": 0.5, "dispersion": 0.5, "loss": 0.5, "surprise": 0.0}

Rule = Literal["everywhere", "difficulty", "surprise", "never"]
RULES: tuple[str, ...] = get_args(Rule)


class InjectionConfig(BaseModel):
    """Thresholds of the gating rules, and the spacing of thinking positions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    difficulty_threshold: float = Field(0.6, ge=0, le=1, description="Difficulty above which the model thinks, 0 to 1")
    surprise_share: float = Field(
        0.2, gt=0, le=1, description="q: share of positions, the most surprising, at which to think"
    )
    min_interval: int = Field(3, ge=1, description="Minimum distance between thinking positions, in tokens")


class ThoughtInjector(nn.Module):
    """Decides where to think, by percentile tables of the four signals, (4, Q), that are stored with the model."""

    quantiles: Tensor

    def __init__(self, config: InjectionConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("quantiles", torch.linspace(0, 1, TABLE).repeat(len(SIGNALS), 1))

    def calibrate(self, signals: list[dict[str, Tensor]]) -> None:
        """Compute the percentile tables from the `signals` of held-out sequences.

        Raises:
            ValueError: when `signals` is empty, or a signal has no finite value. Surprise is exempt, because a model
                without memory has none.
        """
        if not signals:
            raise ValueError("the injector is calibrated on held-out text: give at least one batch of signals")
        grid = torch.linspace(0, 1, TABLE, dtype=torch.float64)
        for row, name in enumerate(SIGNALS):
            values = torch.cat([batch[name].flatten() for batch in signals]).double()
            known = values[torch.isfinite(values)]
            if not len(known) and name != "surprise":
                raise ValueError(
                    f"none of {len(values)} values of {name} is finite, so that it has no percentiles: give windows of "
                    "text with at least two tokens, from a model whose predictions are finite"
                )
            if len(known):
                self.quantiles[row] = _quantiles(known, grid).to(self.quantiles)

    def percentiles(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each signal (batch, seq) as its percentile in [0, 1].

        Percentiles are interpolated linearly between quantiles. A value that equals several quantiles gets the middle
        of their range; a NaN gets UNKNOWN.
        """
        result = {}
        for row, name in enumerate(SIGNALS):
            table, values = self.quantiles[row].contiguous(), signals[name].to(self.quantiles)
            share = (_place(table, values, right=False) + _place(table, values, right=True)) / (2 * (TABLE - 1))
            result[name] = torch.where(torch.isnan(values), UNKNOWN[name], share)
        return result

    def difficulty(self, percentiles: dict[str, Tensor]) -> Tensor:
        """Return the difficulty, .4 entropy + .3 dispersion + .3 loss, in [0, 1]."""
        total = torch.zeros_like(percentiles["entropy"])
        for name, weight in DIFFICULTY.items():
            total = total + weight * percentiles[name]
        return total

    def decide(self, rule: Rule, percentiles: dict[str, Tensor]) -> Tensor:
        """Return where to think, (batch, seq) bool.

        The two gated rules keep thinking positions `min_interval` tokens apart, selecting from left to right, so that
        a decision never depends on later text.
        """
        wanted = self.wants(rule, percentiles)
        return wanted if rule in ("everywhere", "never") else keep_interval(wanted, self.config.min_interval)

    def wants(self, rule: Rule, percentiles: dict[str, Tensor]) -> Tensor:
        """Return where `rule` would think if positions needed no distance, (batch, seq) bool."""
        if rule in ("everywhere", "never"):
            return torch.full_like(percentiles["entropy"], rule == "everywhere", dtype=torch.bool)
        if rule == "surprise":
            return percentiles["surprise"] > 1 - self.config.surprise_share
        return self.difficulty(percentiles) > self.config.difficulty_threshold


def _place(table: Tensor, values: Tensor, *, right: bool) -> Tensor:
    """Return the fractional index of `values` in the ascending `table`, in 0 .. TABLE - 1.

    Where values equal entries of the table, it is the index before them, or after them with `right`.
    """
    above = torch.searchsorted(table, values.contiguous(), right=right).clamp(1, TABLE - 1)
    low, high = table[above - 1], table[above]
    return above - 1 + ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def _quantiles(values: Tensor, grid: Tensor) -> Tensor:
    """Return quantiles by linear interpolation between order statistics.

    This equals torch.quantile, which rejects tensors of more than 2^24 elements.
    """
    ordered = values.sort().values
    place = grid * (len(ordered) - 1)
    low = place.floor().long()
    high = (low + 1).clamp_max(len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)


def keep_interval(wanted_BS: Tensor, interval: int) -> Tensor:
    """Drop the positions of `wanted_BS` that are less than `interval` after the previous one that was kept."""
    kept = torch.zeros_like(wanted_BS)
    rest = torch.zeros(wanted_BS.shape[0], dtype=torch.long, device=wanted_BS.device)
    for position in range(wanted_BS.shape[1]):
        chosen = wanted_BS[:, position] & (rest == 0)
        kept[:, position] = chosen
        rest = torch.where(chosen, interval - 1, (rest - 1).clamp_min(0))
    return kept


@torch.no_grad()
def read_signals(model: Cognate, trace: Trace, tokens_BS: Tensor) -> dict[str, Tensor]:
    """Return the four signals of a traced batch, each (batch, seq) float32.

    The loss of the first token is NaN, because nothing predicts it, and so is the surprise of a model without memory.
    """
    log_p = model.logits(trace.y).float().log_softmax(-1)
    loss = torch.full(tokens_BS.shape, float("nan"), device=tokens_BS.device)
    loss[:, 1:] = -log_p[:, :-1].gather(-1, tokens_BS[:, 1:, None]).squeeze(-1)
    last = trace.core[-1][-1][-1]
    attention = cast(TitansBlock, model.core[-1]).attention
    surprises = [record.memory.surprise().float() for record in trace.prelude if record.memory is not None]
    return {
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "dispersion": attention.dispersion(last.inputs, last.pair[0]).float(),
        "loss": loss,
        "surprise": torch.stack(surprises).mean(0) if surprises else torch.full_like(loss, float("nan")),
    }
