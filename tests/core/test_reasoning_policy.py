"""The policy gradient against exhaustive enumeration, nucleus sampling, the mixing head and coherence against naive
versions and hand numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training_core.phases.p3_quiet_star.mixing import MixingHead, coherence
from training_core.phases.p3_quiet_star.policy import (
    act,
    draw,
    information_gain,
    kl_estimate,
    reinforce_loss,
    relative_advantages,
    sampling_log_probs,
)
from training_core.text.generation import sample

ACTIONS, SAMPLES, BAND = 5, 40_000, 4.0  # standard errors
SETTINGS = [(1.0, 1.0), (0.7, 0.8)]


def random_policy() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the first token (5), of the second after each first (5, 5), and a reward for each of 25 thoughts."""
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5,), (5, 5), (5, 5)))  # type: ignore[return-value]


def nucleus(logits: Tensor, temperature: float, top_p: float) -> list[int]:
    """The actions in the nucleus, one after the other from the most likely on."""
    weights = [math.exp(x / temperature) for x in logits.tolist()]
    inside: list[int] = []
    while len(inside) < len(weights) and sum(weights[i] for i in inside) / sum(weights) < top_p:
        inside.append(max((i for i in range(len(weights)) if i not in inside), key=lambda i: weights[i]))
    return inside


def enumerated_gradient(temperature: float, top_p: float) -> Tensor:
    """Exact gradient of the expected reward over all 25 thoughts, with respect to the 30 logits."""
    first, second, rewards = random_policy()
    theta = torch.cat([first[None], second]).requires_grad_(True)

    def distribution(logits: Tensor) -> Tensor:
        inside = nucleus(logits, temperature, top_p)
        weights = torch.stack([(x / temperature).exp() if i in inside else 0 * x for i, x in enumerate(logits)])
        return weights / weights.sum()

    start = distribution(theta[0])
    expected = sum(start[a] * distribution(theta[1 + a])[b] * rewards[a, b] for a in range(5) for b in range(5))
    (gradient,) = torch.autograd.grad(expected, theta)  # type: ignore[arg-type]
    return gradient.flatten()


def sampled_gradients(
    temperature: float, top_p: float, advantage: Callable[[Tensor], Tensor], *, tempered: bool = True
) -> Tensor:
    """The estimator's gradient for each of SAMPLES thoughts, (SAMPLES, 30). `advantage` maps rewards (SAMPLES)."""
    first, second, rewards = random_policy()
    generator = torch.Generator().manual_seed(1)
    start = first.expand(SAMPLES, -1).clone().requires_grad_(True)
    a = act(start, temperature, top_p, generator)
    then = second[a.index].requires_grad_(True)
    b = act(then, temperature, top_p, generator)
    log_prob = a.log_prob + b.log_prob if tempered else a.full_log_prob + b.full_log_prob
    reinforce_loss(log_prob, advantage(rewards[a.index, b.index])).backward()  # type: ignore[no-untyped-call]
    assert start.grad is not None
    assert then.grad is not None
    result = torch.zeros(SAMPLES, 6, ACTIONS, dtype=torch.float64)
    result[:, 0] = -SAMPLES * start.grad
    result[torch.arange(SAMPLES), 1 + a.index] = -SAMPLES * then.grad
    return result.flatten(1)


def worst_deviation(gradients: Tensor, exact: Tensor) -> float:
    """Largest distance of the mean over rows from `exact`, in standard errors."""
    error = gradients.std(0) / len(gradients) ** 0.5
    distance = (gradients.mean(0) - exact).abs()
    varies = error > 1e-12
    assert float(distance[~varies].sum()) < 1e-12, "what is never sampled has no gradient"
    return float((distance[varies] / error[varies]).max())


@pytest.mark.parametrize(("temperature", "top_p"), SETTINGS)
def test_reinforce_equals_enumeration(temperature: float, top_p: float) -> None:
    exact = enumerated_gradient(temperature, top_p)
    assert float(exact.abs().max()) > 0.05
    assert worst_deviation(sampled_gradients(temperature, top_p, lambda r: r), exact) < BAND


@pytest.mark.parametrize("count", [2, 4])
def test_relative_baseline_scales_the_gradient(count: int) -> None:
    exact = enumerated_gradient(0.7, 0.8)
    found = sampled_gradients(0.7, 0.8, lambda r: relative_advantages(r.view(-1, count)).flatten())
    positions = found.view(-1, count, 30).mean(1)  # thoughts of a position depend on each other, positions do not
    assert worst_deviation(positions, (count - 1) / count * exact) < BAND
    assert worst_deviation(positions, exact) > BAND


def test_information_gain_baseline_is_unbiased() -> None:
    exact = enumerated_gradient(0.7, 0.8)
    without = 3 + torch.randn(SAMPLES // 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = sampled_gradients(0.7, 0.8, lambda r: information_gain(r.view(-1, 4), without).flatten())
    assert worst_deviation(found.view(-1, 4, 30).mean(1), exact) < BAND


def test_log_probability_of_another_distribution_falls_outside_of_the_band() -> None:
    exact = enumerated_gradient(0.7, 0.8)
    assert worst_deviation(sampled_gradients(0.7, 0.8, lambda r: r, tempered=False), exact) > 2 * BAND


def test_rewards_by_hand_and_detached() -> None:
    likelihood = torch.tensor([[-1.0, -3.0], [0.0, -4.0]], requires_grad=True)
    relative = relative_advantages(likelihood)
    assert relative.tolist() == [[1.0, -1.0], [2.0, -2.0]]
    gain = information_gain(likelihood, torch.tensor([-2.0, -1.0], requires_grad=True))
    assert gain.tolist() == [[1.0, -1.0], [1.0, -3.0]]
    assert not relative.requires_grad
    assert not gain.requires_grad
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = reinforce_loss(log_prob, torch.tensor([3.0, 0.5], requires_grad=True))
    assert loss.item() == pytest.approx((3.0 + 1.0) / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [-1.5, -0.25]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_reward_that_is_not_finite_is_an_error_that_says_what_to_change(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 rewards are not finite.*lower muon_lr and adamw_lr"):
        reinforce_loss(torch.zeros(3), torch.tensor([1.0, bad, 2.0]))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.5), (0.7, 0.8), (1.8, 0.95), (1.0, 1e-6)])
def test_nucleus_equals_naive_and_generation(temperature: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        logits = 2 * torch.randn(7, generator=generator, dtype=torch.float64)
        log_p = sampling_log_probs(logits, temperature, top_p)
        inside = nucleus(logits, temperature, top_p)
        assert log_p.isfinite().nonzero().flatten().tolist() == sorted(inside)
        total = sum(math.exp(logits[i] / temperature) for i in inside)
        for i in inside:
            assert float(log_p[i].exp()) == pytest.approx(math.exp(logits[i] / temperature) / total, rel=1e-12)
        drawn = set(sample(logits.expand(600, -1), temperature, top_p, generator).tolist())
        assert drawn <= set(inside)
        assert {i for i in inside if float(log_p[i].exp()) > 0.03} <= drawn
    assert sampling_log_probs(logits, temperature, 1.0).isfinite().all()


def test_draw_has_the_distribution() -> None:
    p = torch.tensor([0.3, 0.0, 0.05, 0.45, 0.2, 0.0], dtype=torch.float64)
    index = draw(p.log().expand(20_000, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(index, minlength=6).double()
    assert counts[p == 0].sum() == 0
    expected = 20_000 * p[p > 0]
    chi_square = float(((counts[p > 0] - expected).square() / expected).sum())
    assert chi_square < 16.27  # 99.9 % of chi-square with 3 degrees of freedom
    again = draw(p.log().expand(20_000, -1), torch.Generator().manual_seed(0))
    assert torch.equal(index, again)


def test_draw_where_rounding_ends_behind_the_last_action() -> None:
    """The smallest positive number has no half: every second uniform number is rounded up to the whole total."""
    log_p = torch.tensor([float("-inf"), -744.5, float("-inf")], dtype=torch.float64)
    assert float(log_p[1].exp()) == 5e-324
    index = draw(log_p.expand(100, -1), torch.Generator().manual_seed(0))
    assert index.tolist() == [1] * 100


def test_entropy_with_impossible_actions() -> None:
    logits = torch.tensor([0.0, float("-inf"), math.log(3.0)], dtype=torch.float64, requires_grad=True)
    actions = act(logits, 0.5, 0.3, given=torch.tensor(0))
    assert actions.entropy.item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), rel=1e-12)
    assert actions.full_log_prob.item() == pytest.approx(math.log(0.25), rel=1e-12)
    assert actions.log_prob.item() == float("-inf"), "outside of the nucleus"
    actions.entropy.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    log_odds = math.log(0.25 / 0.75)  # d entropy / d logit = -p (log p + entropy)
    assert logits.grad.tolist() == pytest.approx([-0.1875 * log_odds, 0.0, 0.1875 * log_odds], abs=1e-12)


def test_kl_estimate_is_not_negative_and_its_mean_is_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        pi, reference = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
        estimates = kl_estimate(pi, reference)
        assert float(estimates.min()) >= 0
        exact = float((pi.exp() * (pi - reference)).sum())
        assert exact > 0.01
        assert float((pi.exp() * estimates).sum()) == pytest.approx(exact, rel=1e-12)
        assert float(kl_estimate(pi, pi).abs().max()) == 0.0


def naive_head(head: MixingHead, base: Tensor, thoughts: Tensor, scores: Tensor) -> Tensor:
    """The mixing head for one position, written out head by head."""

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean() + 1e-6).sqrt() * gain

    width = len(base) // head.num_heads
    y = norm(base, head.base_norm.weight)
    attended = []
    for h in range(head.num_heads):
        rows = slice(h * width, (h + 1) * width)
        inputs = [norm(t, head.thought_norm.weight) for t in thoughts]
        query = head.query.weight[rows] @ y
        exponents = [
            math.exp(
                float(query @ (head.key.weight[rows] @ x)) / width**0.5 + float(head.coherence_weight[h]) * float(score)
            )
            for x, score in zip(inputs, scores, strict=True)
        ]
        values = [head.value.weight[rows] @ x for x in inputs]
        attended.append(sum((w / sum(exponents) * v for w, v in zip(exponents, values, strict=True)), 0 * values[0]))
    both = torch.cat([y, *attended])
    normed = norm(torch.cat(attended), head.mixed_norm.weight)
    gates = [torch.sigmoid(head.gates.weight[h] @ both + head.gates.bias[h]) for h in range(head.num_heads)]
    gated = [gate * normed[h * width : (h + 1) * width] for h, gate in enumerate(gates)]
    return base + head.output.weight @ torch.cat(gated)


@torch.no_grad()
def test_mixing_head_equals_a_naive_loop() -> None:
    torch.manual_seed(0)
    head = MixingHead(32, 4).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    base, thoughts = torch.randn(2, 3, 32, dtype=torch.float64), torch.randn(2, 3, 5, 32, dtype=torch.float64)
    scores = torch.rand(2, 3, 5, dtype=torch.float64)
    mixed = head(base, thoughts, scores)
    for b in range(2):
        for p in range(3):
            assert (mixed[b, p] - naive_head(head, base[b, p], thoughts[b, p], scores[b, p])).abs().max() < 1e-12
    assert (mixed - base).abs().max() > 0.1
    assert torch.equal(head(base, thoughts[:, :, :0], scores[:, :, :0]), base), "no thoughts leave the base"


@torch.no_grad()
def test_mixing_head_starts_exactly_at_the_base() -> None:
    torch.manual_seed(0)
    head = MixingHead(32, 8)
    base = torch.randn(2, 3, 32)
    assert torch.equal(head(base, torch.randn(2, 3, 4, 32), torch.rand(2, 3, 4)), base)
    with pytest.raises(ValueError, match="mixing_heads = 5 must divide d_model = 32"):
        MixingHead(32, 5)


def test_coherence_by_hand() -> None:
    base = torch.tensor([[3.0, 0.0]], requires_grad=True)
    thoughts = torch.tensor([[[0.0, 2.0], [5.0, 0.0], [-1.0, 0.0]]], requires_grad=True)
    mean_log_prob = torch.tensor([[math.log(0.25), 0.0, -1e9]])
    sure = [100.0, 0.0, 0.0, 0.0]
    predicted = torch.tensor([[[0.0] * 4, sure, [0.0, 0.0, -1e9, -1e9]]], requires_grad=True)
    score = coherence(base, thoughts, mean_log_prob, predicted)
    assert score[0].tolist() == pytest.approx(
        [0.4 * 0.5 + 0.3 * 0.25 + 0.0, 0.4 + 0.3 + 0.3, 0.0 + 0.0 + 0.3 * 0.5], abs=1e-6
    )
    assert not score.requires_grad
