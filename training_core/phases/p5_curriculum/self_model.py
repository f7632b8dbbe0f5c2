"""The self-model: a head that predicts in which of ten temperature ranges the model's own sample was drawn.

A sample y_1 .. y_S of the model is drawn at one temperature T. The ranges divide log T evenly (`range_edges`); each
sample is labelled with its range, and log T is uniform within it. The Bayes-optimal predictor (`best_possible`) bounds
the accuracy. It needs no learning, because the likelihood is known in closed form:

    p(y | T) = prod_t softmax(z_t / T)[y_t],     P(range | y) = mean of p(y | T) over the range / their sum,

with the mean taken over the midpoints of a grid in log T. The learned predictor is a head on two features of each
sampled token under the frozen model, its log-probability and the entropy of its distribution, both at temperature 1
and in nats:

    f_t = (log p_t(y_t), H(p_t)),    scores = sum_t MLP(f_t),    P(range | y) = softmax(scores);

scores add up over tokens as log-likelihoods do. The head has access neither to the formula above nor to the logits.
Chance is one over the number of ranges; a head trained on shuffled ranges must not exceed it.

**Differs from** self-modelling as in arXiv:2407.10188, where a network predicts its own activations: only the head is
trained here, and the model does not change.

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
    """Samples of a model at known temperatures.

    `given` (N, P) and `tokens` (N, S) are the ids of prompts and continuations, `ranges` (N) the indices of the
    temperature ranges, and `temperatures` (N) the exact values in float64.
    """

    given: Tensor
    tokens: Tensor
    ranges: Tensor
    temperatures: Tensor


class SelfModel(nn.Module):
    """The head: an MLP from f_t to scores of ranges, which are summed over tokens.

    `edges` (R + 1) bound the ranges; `centre` and `spread` (2) are the mean and the standard deviation of the training
    features.
    """

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
        """Return scores (N, R), which equal log P(range | y) up to a constant per row."""
        scores_NSR: Tensor = self.output(F.gelu(self.hidden((features_NSF - self.centre) / self.spread)))
        return scores_NSR.sum(-2)


def range_edges(num_ranges: int = RANGES) -> Tensor:
    """Return the edges (num_ranges + 1) of the temperature ranges, geometrically spaced from 0.3 to 2.4, in float64."""
    return torch.linspace(math.log(LOWEST), math.log(HIGHEST), num_ranges + 1, dtype=torch.float64).exp()


@torch.no_grad()
def draw_samples(model: Cognate, given_NP: Tensor, num_tokens: int, generator: torch.Generator) -> OwnSamples:
    """Sample `num_tokens` tokens from `model` after END_OF_TEXT and each row of `given_NP`, at one temperature per row.

    The numbers of rows per range differ by at most one. Sampling continues past end-of-text tokens, after which the
    next text begins, as in training. `generator` must be on the CPU.
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
    """Return the logits z_t of every sampled token, (N, S, V) float32 on the CPU."""
    device = next(model.parameters()).device
    ids = torch.cat([F.pad(samples.given, (1, 0), value=END_OF_TEXT_ID), samples.tokens], 1)[:, :-1]
    behind = samples.given.shape[1]
    return torch.cat(
        [model(part.to(device)).logits[:, behind:].float().cpu() for part in torch.split(ids, ROWS_AT_ONCE)]
    )


def features(logits_NSV: Tensor, tokens_NS: Tensor) -> Tensor:
    """Return f_t of every token, (N, S, 2) float32: its log-probability and the distribution's entropy, in nats."""
    log_p_NSV = logits_NSV.log_softmax(-1)
    entropy_NS = -(log_p_NSV.exp() * log_p_NSV).sum(-1)
    return torch.stack([log_p_NSV.gather(-1, tokens_NS[..., None])[..., 0], entropy_NS], -1)


def log_likelihoods(logits_NSV: Tensor, tokens_NS: Tensor, temperatures: Tensor) -> Tensor:
    """Return log p(y | T) = sum_t log softmax(z_t / T)[y_t] in float64, (N, *shape of `temperatures`)."""
    batches = []
    for z_NSV, y_NS in zip(
        torch.split(logits_NSV, _ROWS_IN_CACHE), torch.split(tokens_NS, _ROWS_IN_CACHE), strict=True
    ):
        z_NSV = z_NSV.double() - z_NSV.amax(-1, keepdim=True).double()  # prevents overflow of exp
        z_NS = z_NSV.gather(-1, y_NS[..., None])[..., 0]
        each = [(z_NS / t - (z_NSV / t).exp_().sum(-1).log()).sum(-1) for t in temperatures.flatten().tolist()]
        batches.append(torch.stack(each, -1))
    return torch.cat(batches).view(-1, *temperatures.shape)


def range_grid() -> Tensor:
    """Return the midpoints of a grid in log T over each range, as temperatures (R, G) float64."""
    logs = range_edges().log()
    return (logs[:-1, None] + (logs[1] - logs[0]) * (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID).exp()


def best_possible(log_likelihoods_NRG: Tensor) -> Tensor:
    """Return the Bayes-optimal range (N): the largest integral of the likelihood over log T, under a uniform prior."""
    return log_likelihoods_NRG.logsumexp(-1).argmax(-1)


def train_self_model(features_NSF: Tensor, ranges_N: Tensor, config: SelfModelConfig, seed: int) -> SelfModel:
    """Train a head on batches of samples, by AdamW with linear learning-rate decay. Deterministic for a `seed`."""
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
    """Return the ranges in random order, as labels for a control that carries no information."""
    return ranges_N[torch.randperm(len(ranges_N), generator=step_generator(seed, -9_000_000))]


def confusion(ranges_N: Tensor, predicted_N: Tensor) -> Tensor:
    """Return the confusion matrix, int64 (R, R): rows are true ranges, columns are predictions."""
    return torch.bincount(ranges_N * RANGES + predicted_N, minlength=RANGES**2).view(RANGES, RANGES)


@torch.no_grad()
def measure_self_model(
    head: SelfModel, controls: Sequence[SelfModel], logits_NSV: Tensor, samples: OwnSamples
) -> dict[str, dict[str, Any]]:
    """Evaluate the head, the Bayes-optimal predictor and heads trained on shuffled ranges on held-out samples.

    A single shuffling is subject to luck, so `temperature_shuffled` is pooled over several controls.
    """
    own_features = features(logits_NSV, samples.tokens)
    predicted = {
        "accuracy": head(own_features).argmax(-1),
        "best_possible": best_possible(log_likelihoods(logits_NSV, samples.tokens, range_grid())),
    }
    accuracies = {name: share((which == samples.ranges).tolist()) for name, which in predicted.items()}
    guessed = [control(own_features).argmax(-1) == samples.ranges for control in controls]
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
    """Return the head's tensors under the names by which a bundle stores them."""
    return {f"{SELF_MODEL}{name}": value.detach().cpu() for name, value in head.state_dict().items()}


def load_self_model(tensors: Mapping[str, Tensor]) -> SelfModel:
    """Load the head from the tensors of a bundle (`Bundle.tensors`).

    Raises:
        ValueError: when the bundle holds no head, or an incomplete one.
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
