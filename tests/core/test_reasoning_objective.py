"""The objective: likelihoods against one thought at a time, rewards, controls, gradients and the KL term."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.test_models import small
from tests.core.test_reasoning_thoughts import answers, make_thinker, mix_at_random, seeded, tokens
from tests.oracles.quiet_star_reference import continue_alone
from training_core.phases.p3_quiet_star.objective import (
    PolicyConfig,
    ThoughtObjective,
    draw_positions,
    log_likelihoods,
    slow_log_likelihood,
)
from training_core.phases.p3_quiet_star.policy import information_gain, relative_advantages
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thinker
from training_core.reporting import SilentReporter
from training_core.training.loop import TrainingConfig, train

POLICY = {
    "num_thoughts": 3, "min_length": 1, "max_length": 4, "mixing_heads": 4, "top_p": 0.9, "positions_per_sequence": 5,
    "true_tokens": 3,
}  # fmt: skip


def policy(**changes: object) -> PolicyConfig:
    return PolicyConfig(**(POLICY | changes))  # type: ignore[arg-type]


def parts(
    thinker: Thinker, config: PolicyConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, torch.Generator]:
    """inputs, targets, positions, log-probabilities, likelihood and together of the thoughts from seed 0."""
    text, generator = tokens(14), seeded()
    inputs, targets = text[:, :-1], text[:, 1:]
    trace = thinker.cognate.trace(inputs)
    positions = draw_positions(inputs.shape, config, generator)
    thoughts = thinker.think(trace, positions, generator)
    likelihood, together = log_likelihoods(thinker, trace, targets, positions, thoughts, config.true_tokens)
    return inputs, targets, positions, thoughts.log_prob, likelihood, together, generator


@torch.no_grad()
def test_likelihoods_equal_one_thought_at_a_time() -> None:
    thinker = mix_at_random(make_thinker(end_scale=2.0)).double()
    model, text = thinker.cognate, tokens(14)
    inputs, targets = text[:, :-1], text[:, 1:]
    trace, positions = model.trace(inputs), torch.tensor([[0, 7, 10], [10, 4, 4]])
    thoughts = thinker.think(trace, positions, seeded())
    hidden = thoughts.hidden
    likelihood, together = log_likelihoods(thinker, trace, targets, positions, thoughts, 3)
    assert len(set(thoughts.lengths().flatten().tolist())) > 1
    start, end = model.widen(thinker.delimiter_embedding.weight)
    one = torch.zeros(1, dtype=torch.float64)
    for b, p, n in [(0, 0, 1), (0, 2, 0), (1, 0, 2), (1, 2, 1)]:
        at = int(positions[b, p])
        row = [t for t in thoughts.tokens[b, p, n].tolist() if t != ENDED]
        true = targets[b, at : at + 3].tolist()
        fed = [start, *(model.embed(torch.tensor(t)) for t in row), end, *(model.embed(torch.tensor(t)) for t in true)]
        outputs = continue_alone(model, inputs[b, : at + 1], torch.stack(fed))
        total = 0.0
        for ahead, target in enumerate(true):
            answer = thinker.head(trace.y[b, at + ahead], outputs[len(row) + 1 + ahead][None], one)
            total += float(model.logits(answer).log_softmax(-1)[target])
        assert float(likelihood[b, p, n]) == pytest.approx(total, rel=1e-6)  # summed in float32
    talk = thinker.talk(answers(thinker, inputs, positions), thoughts, hidden)
    expected = F.cross_entropy(talk.together.flatten(0, 1), targets.gather(1, positions).flatten())
    assert float(together) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("reward", ["relative", "information_gain"])
def test_loss_by_its_parts(reward: str) -> None:
    config = policy(reward=reward, policy_weight=0.3, entropy_weight=0.02, kl_weight=0.0, talk_weight=0.7)
    thinker = mix_at_random(make_thinker())
    thinker.slow = small().requires_grad_(requires_grad=False)
    inputs, targets, positions, log_prob, likelihood, together, _ = parts(thinker, config)
    result = ThoughtObjective(config, None)(thinker, tokens(14), None, seeded())
    logits = thinker.cognate(inputs).logits
    base = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    right = (logits.argmax(-1) == targets).float()
    halting = F.binary_cross_entropy_with_logits(thinker.cognate.halt(thinker.cognate.trace(inputs).y), right)
    if reward == "relative":
        advantage = relative_advantages(likelihood)
    else:
        without = slow_log_likelihood(thinker, inputs, targets, positions, config)
        advantage = information_gain(likelihood, without)
    root = advantage.square().mean().sqrt()
    reinforce = -(advantage / (root + 1e-3) * log_prob).mean()
    talk = (-likelihood.mean() / 3 + together) / 2
    expected = base + 0.5 * halting + 0.7 * talk + 0.3 * reinforce - 0.02 * result.metrics["entropy"]
    assert result.loss.item() == pytest.approx(expected.item(), rel=2e-5)
    assert result.metrics["cross_entropy"].item() == pytest.approx(base.item(), rel=1e-5)
    assert result.metrics["reward_spread"].item() == pytest.approx(
        relative_advantages(likelihood).square().mean().sqrt().item(), rel=1e-4
    )
    assert "kl" not in result.metrics


def gradients(thinker: Thinker, config: PolicyConfig, reference: Thinker | None = None) -> set[str]:
    ThoughtObjective(config, reference)(thinker, tokens(14), None, seeded()).loss.backward()  # type: ignore[no-untyped-call]
    return {n for n, p in thinker.named_parameters() if p.grad is not None and bool(p.grad.any())}


def test_gradient_reaches_delimiters_head_and_backbone() -> None:
    every = {name for name, _ in make_thinker().named_parameters()}
    assert gradients(mix_at_random(make_thinker()), policy()) == every
    untrained = gradients(make_thinker(), policy())
    assert {"head.output.weight", "delimiter_embedding.weight"} <= untrained, "the zero head can be left"
    pause = gradients(mix_at_random(make_thinker(content="pause")), policy(content="pause"))
    assert {"pause_embedding.weight", "delimiter_embedding.weight", "head.value.weight"} <= pause


def test_random_reward_is_noise_of_the_same_scale() -> None:
    thinker = mix_at_random(make_thinker(num_thoughts=4))
    advantages = {}
    for reward in ("relative", "random"):
        config = policy(reward=reward, policy_weight=1.0, entropy_weight=0.0, positions_per_sequence=10, num_thoughts=4)
        inputs, targets, positions, _, likelihood, _, generator = parts(thinker, config)
        thoughts = thinker.think(thinker.cognate.trace(inputs), positions, seeded())
        thoughts.log_prob = thoughts.log_prob.detach().requires_grad_(True)
        loss, _ = ThoughtObjective(config, None)._policy(
            thinker, inputs, targets, positions, thoughts, likelihood, generator
        )
        (gradient,) = torch.autograd.grad(loss, thoughts.log_prob)
        advantages[reward] = -gradient.flatten() * gradient.numel()
    true, noise = advantages["relative"], advantages["random"]
    assert len(true) == 80
    assert true.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)
    assert noise.square().mean().sqrt().item() == pytest.approx(1, abs=3 / (2 * 80) ** 0.5)
    correlation = float(torch.corrcoef(torch.stack([true, noise]))[0, 1])
    assert abs(correlation) < 3 / 80**0.5


def test_random_reward_of_single_thoughts_is_not_silent() -> None:
    thinker = mix_at_random(make_thinker(num_thoughts=1))
    config = policy(reward="random", num_thoughts=1, talk_weight=0.0, entropy_weight=0.0, kl_weight=0.0)
    loud, silent = (
        ThoughtObjective(config.model_copy(update={"policy_weight": w}), None)(thinker, tokens(14), None, seeded()).loss
        for w in (1.0, 0.0)
    )
    assert abs(loud.item() - silent.item()) > 0.01


def test_coherence_is_no_part_of_the_reward() -> None:
    config = policy()
    thinker = mix_at_random(make_thinker())
    before = parts(thinker, config)
    with torch.no_grad():
        thinker.head.coherence_weight.mul_(-4)
    after = parts(thinker, config)
    assert torch.equal(before[4], after[4]), "the likelihood that is rewarded"
    assert not torch.equal(before[5], after[5]), "together, thoughts are weighed by it"


def test_divergence_is_zero_from_itself_and_positive_from_another() -> None:
    config = policy(kl_weight=0.5)
    thinker, same, other = (mix_at_random(make_thinker()) for _ in range(3))
    with torch.no_grad():
        other.cognate.embedding.weight.mul_(1.3)
    near = ThoughtObjective(config, same)(thinker, tokens(14), None, seeded())
    far = ThoughtObjective(config, other)(thinker, tokens(14), None, seeded())
    assert near.metrics["kl"].item() == pytest.approx(0.0, abs=1e-6)
    assert far.metrics["kl"].item() > 0.01
    assert far.loss.item() - near.loss.item() == pytest.approx(0.5 * far.metrics["kl"].item(), rel=1e-3)
    inputs, _, positions, *_ = parts(thinker, config)
    generator = seeded()
    draw_positions(inputs.shape, config, generator)
    thoughts = thinker.think(thinker.cognate.trace(inputs), positions, generator)
    replayed = other.think(other.cognate.trace(inputs), positions, None, thoughts.tokens)
    log_ratio = (replayed.full_log_prob - thoughts.full_log_prob)[thoughts.acted]
    expected = (log_ratio.exp() - 1 - log_ratio).mean()
    assert far.metrics["kl"].item() == pytest.approx(expected.item(), rel=1e-4)
    off = ThoughtObjective(policy(kl_weight=0.0), other)
    assert off.reference is None
    assert off(thinker, tokens(14), None, seeded()).loss.item() == pytest.approx(near.loss.item(), rel=1e-6)


@torch.no_grad()
def test_slow_copy_moves_and_scores_without_thinking() -> None:
    thinker = make_thinker()
    inputs, targets = tokens(14)[:, :-1], tokens(14)[:, 1:]
    positions = torch.tensor([[0, 9], [3, 10]])
    config = policy(slow_decay=0.75)
    with pytest.raises(ValueError, match="call its keep_slow_copy"):
        slow_log_likelihood(thinker, inputs, targets, positions, config)
    thinker = Thinker(small(), config)
    thinker.keep_slow_copy()
    assert thinker.slow is not None
    for parameter in thinker.slow.parameters():
        parameter.mul_(0.5)
    start = thinker.slow.embedding.weight.clone()
    found = slow_log_likelihood(thinker, inputs, targets, positions, config)
    own = thinker.cognate.embedding.weight
    assert (thinker.slow.embedding.weight - (0.75 * start + 0.25 * own)).abs().max() < 1e-6
    log_p = thinker.slow(inputs).logits.log_softmax(-1)
    for b, p in [(0, 0), (0, 1), (1, 1)]:
        at = int(positions[b, p])
        expected = sum(float(log_p[b, at + i, targets[b, at + i]]) for i in range(3))
        assert float(found[b, p]) == pytest.approx(expected, abs=1e-4)
    assert not any(p.requires_grad for p in thinker.slow.parameters())


def test_positions_are_distinct_and_followed_by_text() -> None:
    config = policy(positions_per_sequence=6, true_tokens=4)
    drawn = draw_positions(torch.Size([200, 10]), config, seeded())
    assert drawn.shape == (200, 6)
    assert bool((drawn[:, 1:] > drawn[:, :-1]).all())
    assert (int(drawn.min()), int(drawn.max())) == (0, 6), "the last has the last 4 of 10 targets"
    assert set(torch.bincount(drawn.flatten()).gt(140).tolist()) == {True}  # each of 7 places in 6 of 7 rows
    assert draw_positions(torch.Size([2, 4]), config, seeded()).tolist() == [[0], [0]]
    with pytest.raises(ValueError, match="true_tokens = 4 needs sequences of at least as many tokens, seq_len is 3"):
        draw_positions(torch.Size([2, 3]), config, seeded())


def test_reward_that_is_not_a_number_stops_training_before_anything_is_saved(tmp_path: Path) -> None:
    thinker = make_thinker()
    with torch.no_grad():
        thinker.head.output.weight[0, 0] = float("nan")
    config = TrainingConfig(steps=3, batch_size=2, seq_len=13, checkpoint_interval_s=0.0)
    with pytest.raises(ValueError, match="rewards are not finite.*lower muon_lr and adamw_lr"):
        train(
            thinker,
            ThoughtObjective(policy(kl_weight=0.0), None),
            lambda generator: tokens(14),
            config,
            SilentReporter(),
            checkpoint=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []
