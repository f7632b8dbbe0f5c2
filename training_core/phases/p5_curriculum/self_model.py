"""A model of one's own temperature: in which of ten ranges was the temperature at which this sample was drawn?

A sample y_1 .. y_S of the model is drawn at one temperature T. Ranges divide log T evenly (`range_edges`), the range of
a sample is known, and log T is uniform within it. What can be known is bounded by the *best possible* predictor: the
likelihood is known in closed form, so that the posterior over ranges needs no learning,

    p(y | T) = prod_t softmax(z_t / T)[y_t],     P(range | y) = mean of p(y | T) over the range / their sum,

with the mean taken on the midpoints of a grid in log T. No predictor from the same tokens and logits is right more
often. Another is learned: a head over what the frozen model says of each token that it drew, the logarithm of its
probability and the entropy of its distribution, both at temperature 1 and in nats,

    f_t = (log p_t(y_t), H(p_t)),    scores = sum_t MLP(f_t),    P(range | y) = softmax(scores);

scores add up over tokens as log-likelihoods do. The head knows neither the formula above nor any logits. Chance is one
in the number of ranges; a head that learned from shuffled ranges has to fall to it.

**Differs from** what goes by the name of self-modelling (arXiv:2407.10188), where a network predicts its activations:
nothing is trained here but the head, and the model does not change.

Shape legend: N samples, S tokens, R ranges, G grid points in a range, V vocabulary; F the 2 numbers of f_t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.formats.loading import SELF_MODEL
from training_core.nn.cognate import Cognate
from training_core.phases.p5_curriculum.config import SelfModelConfig
from training_core.phases.p5_curriculum.estimates import share
from training_core.training.loop import step_generator

RANGES = 10
LOWEST, HIGHEST = 0.3, 2.4
GRID = 4
ROWS_AT_ONCE = 128
_ROWS_IN_CACHE = 4


@dataclass(frozen=True, slots=True)
class OwnSamples:
    """What a model wrote at known temperatures: `given` (N, P) and `tokens` (N, S) ids, `ranges` (N) from 0, and the
    exact `temperatures` (N) float64."""

    given: Tensor
    tokens: Tensor
    ranges: Tensor
    temperatures: Tensor


class SelfModel(nn.Module):
    """The head: f_t to scores of ranges, summed over tokens. `edges` (R + 1) are the ranges it predicts, `centre` and
    `spread` (2) the mean and the standard deviation of what it was trained on."""

    edges: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, hidden: int, num_ranges: int = RANGES) -> None:
        super().__init__()
        self.register_buffer("edges", range_edges(num_ranges))
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))
        self.hidden = nn.Linear(2, hidden)
        self.output = nn.Linear(hidden, num_ranges)

    def forward(self, features_NSF: Tensor) -> Tensor:
        """Scores (N, R): the logarithms of P(range | y), up to a constant of each row."""
        scores_NSR: Tensor = self.output(F.gelu(self.hidden((features_NSF - self.centre) / self.spread)))
        return scores_NSR.sum(-2)


def range_edges(num_ranges: int = RANGES) -> Tensor:
    """The edges (num_ranges + 1) of the ranges of temperature, float64: geometric, 0.3 to 2.4."""
    return torch.linspace(math.log(LOWEST), math.log(HIGHEST), num_ranges + 1, dtype=torch.float64).exp()


@torch.no_grad()
def draw_samples(model: Cognate, given_NP: Tensor, num_tokens: int, generator: torch.Generator) -> OwnSamples:
    """Let `model` go on after END_OF_TEXT and each row of `given_NP` for `num_tokens` tokens, at a temperature a row.

    Every range gets as many rows as every other, but for one. An end-of-text is a token like any other here, behind
    which the next text begins, as in training. `generator` must be on the CPU.
    """
    edges = range_edges()
    ranges = torch.arange(len(given_NP)) % RANGES
    place = torch.rand(len(given_NP), generator=generator, dtype=torch.float64)
    temperatures = edges[ranges] * (edges[1] / edges[0]) ** place
    device = next(model.parameters()).device
    written = []
    for start in range(0, len(given_NP), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        given, state = given_NP[part], model.stream(len(given_NP[part]))
        ids = F.pad(given, (1, 0), value=END_OF_TEXT_ID)
        while True:
            logits = model.step(ids[:, state.position].to(device), state).cpu()
            if state.position < ids.shape[1]:
                continue
            probabilities = (logits.double() / temperatures[part, None]).softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], 1)
            if ids.shape[1] == 1 + given.shape[1] + num_tokens:
                break
        written.append(ids[:, 1 + given.shape[1] :])
    return OwnSamples(given_NP, torch.cat(written), ranges, temperatures)


@torch.no_grad()
def own_logits(model: Cognate, samples: OwnSamples) -> Tensor:
    """z_t of every token that was drawn, (N, S, V) float32 on the CPU."""
    device = next(model.parameters()).device
    ids = torch.cat([F.pad(samples.given, (1, 0), value=END_OF_TEXT_ID), samples.tokens], 1)[:, :-1]
    behind = samples.given.shape[1]
    return torch.cat(
        [model(part.to(device)).logits[:, behind:].float().cpu() for part in torch.split(ids, ROWS_AT_ONCE)]
    )


def features(logits_NSV: Tensor, tokens_NS: Tensor) -> Tensor:
    """f_t of every token, (N, S, 2) float32: its log-probability and the distribution's entropy, in nats."""
    log_p_NSV = logits_NSV.log_softmax(-1)
    entropy_NS = -(log_p_NSV.exp() * log_p_NSV).sum(-1)
    return torch.stack([log_p_NSV.gather(-1, tokens_NS[..., None])[..., 0], entropy_NS], -1)


def log_likelihoods(logits_NSV: Tensor, tokens_NS: Tensor, temperatures: Tensor) -> Tensor:
    """log p(y | T) = sum_t log softmax(z_t / T)[y_t] in float64, (N, *shape of `temperatures`)."""
    found = []
    for z_NSV, y_NS in zip(
        torch.split(logits_NSV, _ROWS_IN_CACHE), torch.split(tokens_NS, _ROWS_IN_CACHE), strict=True
    ):
        z_NSV = z_NSV.double() - z_NSV.amax(-1, keepdim=True).double()  # nothing overflows below
        z_NS = z_NSV.gather(-1, y_NS[..., None])[..., 0]
        each = [(z_NS / t - (z_NSV / t).exp_().sum(-1).log()).sum(-1) for t in temperatures.flatten().tolist()]
        found.append(torch.stack(each, -1))
    return torch.cat(found).view(-1, *temperatures.shape)


def range_grid() -> Tensor:
    """Midpoints of a grid in log T over every range: temperatures (R, G) float64."""
    logs = range_edges().log()
    return (logs[:-1, None] + (logs[1] - logs[0]) * (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID).exp()


def best_possible(log_likelihoods_NRG: Tensor) -> Tensor:
    """The likeliest range (N) after integrating the likelihood over each range in log T, all equally likely before."""
    return log_likelihoods_NRG.logsumexp(-1).argmax(-1)


def train_self_model(features_NSF: Tensor, ranges_N: Tensor, config: SelfModelConfig, seed: int) -> SelfModel:
    """A head trained on batches of samples by AdamW with a linearly falling learning rate. Deterministic in `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SelfModel(config.hidden)
    head.centre, head.spread = features_NSF.mean((0, 1)), features_NSF.std((0, 1)).clamp_min(1e-6)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        optimizer.zero_grad()
        chosen = torch.randint(
            len(ranges_N), (min(config.batch_size, len(ranges_N)),), generator=step_generator(seed, step)
        )
        loss = F.cross_entropy(head(features_NSF[chosen]), ranges_N[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.eval()


def shuffled(ranges_N: Tensor, seed: int) -> Tensor:
    """The same ranges in another order: what is learned from them says nothing."""
    return ranges_N[torch.randperm(len(ranges_N), generator=step_generator(seed, -9_000_000))]


def confusion(ranges_N: Tensor, predicted_N: Tensor) -> Tensor:
    """How many samples of each range (rows) were taken for each (columns), int64 (R, R)."""
    return torch.bincount(ranges_N * RANGES + predicted_N, minlength=RANGES**2).view(RANGES, RANGES)


@torch.no_grad()
def measure_self_model(
    head: SelfModel, controls: Sequence[SelfModel], logits_NSV: Tensor, samples: OwnSamples
) -> dict[str, dict[str, Any]]:
    """The head, the best possible predictor and heads that learned shuffled ranges, on held-out samples.

    What one shuffling leads to is either luck or bad luck, so that `temperature_shuffled` is over several together.
    """
    told = features(logits_NSV, samples.tokens)
    predicted = {
        "accuracy": head(told).argmax(-1),
        "best_possible": best_possible(log_likelihoods(logits_NSV, samples.tokens, range_grid())),
    }
    accuracies = {name: share((which == samples.ranges).tolist()) for name, which in predicted.items()}
    guessed = [control(told).argmax(-1) == samples.ranges for control in controls]
    accuracies["shuffled"] = share(torch.cat(guessed).tolist())
    within_one = float(((predicted["accuracy"] - samples.ranges).abs() <= 1).double().mean())
    metrics = {
        "temperature_within_one": within_one,
        "temperature_chance": 1 / RANGES,
        "temperature_over_chance_low": accuracies["accuracy"].low - 1 / RANGES,
    }
    for name, estimate in accuracies.items():
        metrics |= estimate.metrics(f"temperature_{name}")
    shown = {
        "edges": head.edges.tolist(),
        "confusion": confusion(samples.ranges, predicted["accuracy"]).tolist(),
        "model": accuracies["accuracy"].document(),
        "best_possible": accuracies["best_possible"].document(),
        "within_one": within_one,
        "chance": 1 / RANGES,
    }
    return {"metrics": metrics, "shown": shown}


def self_model_tensors(head: SelfModel) -> dict[str, Tensor]:
    """The head as a bundle stores it, beside the weights of the model."""
    return {f"{SELF_MODEL}{name}": value.detach().cpu() for name, value in head.state_dict().items()}


def load_self_model(tensors: Mapping[str, Tensor]) -> SelfModel:
    """The head from the tensors of a bundle (`Bundle.tensors`).

    Raises:
        ValueError: when they hold none, or a part of one.
    """
    own = {name.removeprefix(SELF_MODEL): t for name, t in tensors.items() if name.startswith(SELF_MODEL)}
    if not {"hidden.weight", "output.weight"} <= own.keys():
        raise ValueError("the bundle holds no self-model: only a curriculum_model can tell its own temperature")
    head = SelfModel(*own["output.weight"].shape[::-1])
    try:
        head.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"the self-model does not fit together ({error}): materialize the model again") from error
    return head.eval()
