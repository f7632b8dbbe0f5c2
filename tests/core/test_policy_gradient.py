"""The group-relative policy gradient against TRL's numbers, a naive loop, an enumerated policy, and a real model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phases.p5_curriculum.policy_gradient import (
    PolicyGradientConfig,
    PolicyGradientObjective,
    clipped_objective,
    group_advantages,
)
from training_core.reporting import SilentReporter
from training_core.tasks.questions.attempts import Attempt, Role
from training_core.tasks.questions.question import Provenance, Question
from training_core.training.loop import TrainingConfig, train
from training_core.training.objective import HALT_WEIGHT

CONFIG = PolicyGradientConfig()
SMALL = CognateConfig(
    vocab_size=258,
    d_model=16,
    num_heads=2,
    num_layers=2,
    num_core_layers=1,
    d_ff=32,
    window=8,
    max_seq_len=32,
    memory_heads=1,
    memory_rank=4,
    memory_layers=[0],
)
QUESTION = Question(1, "copy", "ab", "ab", Provenance("generator", "test", 0, "0" * 64), "exact")
# Made with TRL 1.16.0: the lines of `GRPOTrainer` for scale_rewards "group" and "none", in float32.
REWARDS = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0], [0.25, 0.5, 1.0, -1.0]]
TRL_GROUP = [
    [0.8658754229545593, -0.8658754229545593, -0.8658754229545593, 0.8658754229545593],
    [0.0, 0.0, 0.0, 0.0],
    [-0.4999000132083893, -0.4999000132083893, 1.4997000694274902, -0.4999000132083893],
    [0.07344668358564377, 0.36723339557647705, 0.9548068642616272, -1.3954869508743286],
]
TRL_NONE = [[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [-0.25, -0.25, 0.75, -0.25], [0.0625, 0.3125, 0.8125, -1.1875]]
# Its loss_type "dapo" on the tokens below (epsilon = .2, no KL term), and the gradient in the log-probabilities.
LOG_PROBS = [-1.0, -0.5, -2.0, -0.7, -0.3, -0.9]
OLD_LOG_PROBS = [-1.0, -0.9, -1.5, -1.2, -0.6, -0.5]
ADVANTAGES = [0.8658754] * 3 + [-0.4999] * 3
TRL_LOSS = -0.08853262662887573
TRL_GRADIENT = [-0.14431257545948029, 0.0, -0.08753000199794769, 0.13736596703529358, 0.1124657467007637, 0.0]


def small_model(seed: int = 0, **changes: object) -> Cognate:
    torch.manual_seed(seed)
    model = Cognate(SMALL.model_copy(update=changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def attempt(prompt: str, written: str, *, right: bool = True) -> Attempt:
    """Tokens are letters; lower case is the model's own, upper case a tool's, a digit a hint's."""
    roles: list[Role] = ["tool" if c.isupper() else "hint" if c.isdigit() else "own" for c in written]
    ids = tuple(1 + ord(c.lower()) % 23 for c in written)
    prompt_ids = tuple(1 + ord(c) % 23 for c in prompt)
    return Attempt(
        question=QUESTION, prompt_ids=prompt_ids, completion_ids=ids, roles=tuple(roles), log_probs=(0.0,) * len(ids),
        hint=0, given="", text=written, answer="", right=right, calls=(),
    )  # fmt: skip


ATTEMPTS = [
    attempt("abc", "dXYef"),
    attempt("q", "12gh", right=False),
    attempt("hello", "wZ"),
    attempt("st", "uvwxyz", right=False),
]


def with_log_probs(model: Cognate, attempts: list[Attempt], shift: float = 0.0) -> list[Attempt]:
    """What a sampler would have noted, computed one attempt at a time; `shift` pretends that an older model drew."""
    noted = []
    for number, each in enumerate(attempts):
        row = torch.tensor([[0, *each.prompt_ids, *each.completion_ids]])
        with torch.no_grad():
            log_probs = model(row[:, :-1]).logits.double().log_softmax(-1)[0]
        start = len(each.prompt_ids)
        values = tuple(
            float(log_probs[start + t, token]) + shift * math.sin(1 + number + 2 * t) if role == "own" else 0.0
            for t, (token, role) in enumerate(zip(each.completion_ids, each.roles, strict=True))
        )
        noted.append(replace(each, log_probs=values))
    return noted


def step(model: nn.Module, attempts: list[Attempt], advantages: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor]:
    objective = PolicyGradientObjective(attempts, advantages, CONFIG)
    result = objective(model, torch.tensor(numbers), None, torch.Generator())
    return result.loss, result.logits


# --- advantages


def test_advantages_are_those_of_trl() -> None:
    rewards = torch.tensor(REWARDS)
    # one unit in the last place of float32 at 1.5 is 1.2e-7
    torch.testing.assert_close(group_advantages(rewards), torch.tensor(TRL_GROUP), rtol=0, atol=2.5e-7)
    torch.testing.assert_close(group_advantages(rewards, "none"), torch.tensor(TRL_NONE), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e6 + 0.1])
def test_a_group_of_equal_rewards_teaches_nothing(value: float) -> None:
    for size in (2, 3, 7):
        for scale in ("group", "none"):
            rewards = torch.full((2, size), value)
            assert torch.equal(group_advantages(rewards, scale), torch.zeros(2, size))  # type: ignore[arg-type]


def test_advantages_of_a_group_sum_to_zero_and_do_not_depend_on_a_constant() -> None:
    rewards = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages = group_advantages(rewards)
    assert advantages.sum(1).abs().max() < 1e-12
    torch.testing.assert_close(group_advantages(rewards + 3), advantages, rtol=0, atol=1e-9)
    expected_std = rewards.std(1) / (rewards.std(1) + 1e-4)
    torch.testing.assert_close(advantages.std(1), expected_std, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rewards", [torch.zeros(4), torch.zeros(4, 1), torch.tensor([[0.0, math.nan]])])
def test_rewards_without_groups_are_refused(rewards: Tensor) -> None:
    with pytest.raises(ValueError, match="attempt every question at least twice"):
        group_advantages(rewards)


# --- the clipped objective


def test_loss_and_gradient_are_those_of_trl() -> None:
    log_probs = torch.tensor(LOG_PROBS, requires_grad=True)
    loss = -clipped_objective(log_probs, torch.tensor(OLD_LOG_PROBS), torch.tensor(ADVANTAGES))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(TRL_LOSS, abs=1e-7)
    torch.testing.assert_close(log_probs.grad, torch.tensor(TRL_GRADIENT), rtol=0, atol=1e-7)


def test_a_part_of_a_batch_is_divided_by_the_whole() -> None:
    log_probs, old, advantages = (torch.tensor(x) for x in (LOG_PROBS, OLD_LOG_PROBS, ADVANTAGES))
    whole = clipped_objective(log_probs, old, advantages)
    parts = [clipped_objective(log_probs[s], old[s], advantages[s], normaliser=6) for s in (slice(2), slice(2, 6))]
    assert float(parts[0] + parts[1]) == pytest.approx(float(whole), abs=1e-7)
    nothing = clipped_objective(log_probs[:0], old[:0], advantages[:0])
    assert float(nothing) == 0.0


def test_gradient_of_the_expected_reward_by_enumeration() -> None:
    """A softmax policy writes two letters of three; all nine texts are enumerated. In a group of K the mean reward
    holds the attempt's own, so that the expected gradient is (K - 1) / K of the true one."""
    num_groups, size = 4000, 4
    table = torch.tensor([[0.3, -0.5, 0.1], [0.8, 0.0, -0.4], [-0.2, 0.5, 0.2], [0.0, 0.1, -0.9]], dtype=torch.float64)
    reward = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, -1.0, 0.5]], dtype=torch.float64)

    def chosen(parameters: Tensor, first: Tensor, second: Tensor) -> Tensor:
        log_probs = parameters.log_softmax(-1)
        return torch.stack([log_probs[0][first], log_probs[1 + first, second]], -1)

    exact = table.clone().requires_grad_()
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    probability = chosen(exact, *every.T).sum(-1).exp()
    (probability * reward[every[:, 0], every[:, 1]]).sum().backward()

    generator = torch.Generator().manual_seed(7)
    first = torch.multinomial(table[0].softmax(-1), num_groups * size, replacement=True, generator=generator)
    second = torch.multinomial(table[1 + first].softmax(-1), 1, generator=generator)[:, 0]
    advantages = group_advantages(reward[first, second].view(num_groups, size), "none")

    def gradient(parameters: Tensor) -> Tensor:
        """Of the objective, with tokens of a group over its number of attempts; each group apart."""
        log_probs = chosen(parameters, first, second).view(num_groups, size, 2)
        old = log_probs.detach()
        per_group = [
            clipped_objective(new.flatten(), o.flatten(), a.repeat_interleave(2), normaliser=size)
            for new, o, a in zip(log_probs, old, advantages, strict=True)
        ]
        total = torch.stack(per_group)
        (jacobian,) = torch.autograd.grad(total.sum(), parameters)
        return jacobian

    estimate = gradient(table.clone().requires_grad_()) / num_groups * size / (size - 1)
    # the spread over groups, by hand: one-hot minus softmax, times the advantage
    soft = table.softmax(-1)
    scores = torch.zeros(num_groups * size, 4, 3, dtype=torch.float64)
    rows = torch.arange(num_groups * size)
    scores[rows, 0] = nn.functional.one_hot(first, 3).double() - soft[0]
    scores[rows, 1 + first] = nn.functional.one_hot(second, 3).double() - soft[1 + first]
    by_group = (scores * advantages.reshape(-1, 1, 1)).view(num_groups, size, 4, 3).sum(1) / (size - 1)
    torch.testing.assert_close(estimate, by_group.mean(0), rtol=0, atol=1e-12)
    error = by_group.std(0) / math.sqrt(num_groups)
    assert exact.grad is not None
    assert ((estimate - exact.grad).abs() < 4 * error + 1e-12).all()
    assert exact.grad.abs().max() > 10 * error.max(), "there is something to be found"


# --- on a model


def test_loss_is_that_of_a_naive_loop_without_padding() -> None:
    model = small_model()
    attempts = with_log_probs(model, ATTEMPTS, shift=0.4)
    advantages = torch.tensor([1.2, -0.7, 0.4, -0.9])
    numbers = [3, 0, 1, 2, 0]
    loss, _ = step(model, attempts, advantages, numbers)

    total, halting, tokens, halted, beyond = 0.0, 0.0, 0, 0, 0
    for number in numbers:
        each, advantage = attempts[number], float(advantages[number])
        row = torch.tensor([[0, *each.prompt_ids, *each.completion_ids]])
        with torch.no_grad():
            h = model.encode(row[:, :-1])
            y = model.supervise(h, model.start(h)).y
            logits, halt = model.logits(y)[0].double(), model.halt(y)[0].double()
        for t, token in enumerate(each.completion_ids):
            if each.roles[t] != "own":
                continue
            place = len(each.prompt_ids) + t
            log_prob = float(logits[place, token]) - math.log(sum(math.exp(float(x)) for x in logits[place]))
            ratio = math.exp(log_prob - each.log_probs[t])
            total += min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            beyond += not 0.8 <= ratio <= 1.2
            tokens += 1
            if each.right:
                q = 1 / (1 + math.exp(-float(halt[place])))
                hit = int(logits[place].argmax()) == token
                halting -= math.log(q if hit else 1 - q)
                halted += 1
    assert (tokens, halted) == (15, 7)
    assert beyond >= 5
    assert float(loss.detach()) == pytest.approx(HALT_WEIGHT * halting / halted - total / tokens, abs=2e-6)  # float32


def test_only_tokens_that_the_model_drew_move_anything() -> None:
    model = small_model()
    attempts = with_log_probs(model, ATTEMPTS)
    loss, logits = step(model, attempts, torch.tensor([1.2, -0.7, 0.4, -0.9]), [0, 1, 2, 3])
    (gradient,) = torch.autograd.grad(loss, logits)
    moved = gradient.abs().sum(-1) > 0
    expected = torch.zeros_like(moved)
    for row, each in enumerate(attempts):
        for t, role in enumerate(each.roles):
            expected[row, len(each.prompt_ids) + t] = role == "own"
    assert torch.equal(moved, expected)
    assert int(moved.sum()) == 3 + 2 + 1 + 6


def test_advantage_zero_moves_nothing_but_the_halting_head() -> None:
    model = small_model()
    attempts = with_log_probs(model, ATTEMPTS)
    loss, _ = step(model, attempts, torch.zeros(4), [0, 1, 2, 3])
    loss.backward()  # type: ignore[no-untyped-call]
    moved = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert moved
    assert all("halt" in name for name in moved), moved


def test_policy_that_drew_is_at_ratio_one() -> None:
    model = small_model()
    attempts = with_log_probs(model, ATTEMPTS)
    objective = PolicyGradientObjective(attempts, torch.tensor([1.2, -0.7, 0.4, -0.9]), CONFIG)
    metrics = objective(model, torch.arange(4), None, torch.Generator()).metrics
    assert float(metrics["clipped"]) == 0.0
    assert abs(float(metrics["moved"])) < 1e-7  # (float32 error of a ratio)^2 / 2, and its rounding
    assert float(metrics["objective"]) == pytest.approx((3 * 1.2 - 2 * 0.7 + 0.4 - 6 * 0.9) / 12, abs=1e-6)
    older = PolicyGradientObjective(
        [replace(each, log_probs=tuple(p - math.log(1.5) for p in each.log_probs)) for each in attempts],
        torch.tensor([1.0, 1.0, -1.0, -1.0]),
        CONFIG,
    )
    metrics = older(model, torch.arange(4), None, torch.Generator()).metrics
    assert float(metrics["clipped"]) == pytest.approx(5 / 12)  # raised enough: those of the two with positive advantage
    assert float(metrics["moved"]) == pytest.approx(0.5 - math.log(1.5), abs=1e-5)


def test_training_makes_what_was_rewarded_likelier() -> None:
    model = small_model()
    group = [attempt("abc", "de"), attempt("abc", "fg"), attempt("abc", "hi"), attempt("abc", "jk")]
    attempts = with_log_probs(model, group)
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).flatten()
    config = TrainingConfig(steps=8, batch_size=4, muon_lr=0.002, adamw_lr=0.002, precision="float32")
    train(
        model,
        PolicyGradientObjective(attempts, advantages, CONFIG),
        lambda g: torch.arange(4),
        config,
        SilentReporter(),
    )
    change = [
        sum(new.log_probs) - sum(old.log_probs) for new, old in zip(with_log_probs(model, group), attempts, strict=True)
    ]
    assert change[0] > 0.1
    assert max(change[1:]) < 0


def test_batch_without_a_token_of_its_own_has_no_loss() -> None:
    model = small_model()
    attempts = [attempt("ab", "12"), attempt("ab", "cd")]
    loss, _ = step(model, attempts, torch.tensor([1.0, -1.0]), [0, 0])
    assert float(loss.detach()) == 0.0
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("attempts", "advantages", "message"),
    [
        (ATTEMPTS, torch.zeros(3), "one finite advantage for each of 4 attempts"),
        (ATTEMPTS, torch.zeros(2, 2), "one finite advantage for each of 4 attempts"),
        (ATTEMPTS, torch.tensor([0.0, 0.0, math.inf, 0.0]), "with 1 not finite"),
        ([attempt("ab", "1X")], torch.zeros(1), "none of 1 attempts has a token of the model's own"),
    ],
)
def test_what_teaches_nothing_is_refused(attempts: list[Attempt], advantages: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyGradientObjective(attempts, advantages, CONFIG)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_clip_is_bounded(clip: float) -> None:
    with pytest.raises(ValueError, match="clip"):
        PolicyGradientConfig(clip=clip)
