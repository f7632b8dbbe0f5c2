"""Divergences against explicit sums, TRL's published values, closed gradients and their limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from training_core.distill.divergences import Divergence, divergence

KINDS: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jensen_shannon")


def naive_kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def naive_softmax(logits: Tensor) -> list[float]:
    exponentials = [math.exp(x) for x in logits.tolist()]
    total = sum(exponentials)
    return [e / total for e in exponentials]


def naive_divergence(kind: str, student: Tensor, teacher: Tensor, beta: float) -> float:
    """TRL's published formula, for logits (vocab,): beta 0 is KL(T || S), beta 1 is KL(S || T)."""
    s, t = naive_softmax(student), naive_softmax(teacher)
    if kind == "forward_kl" or (kind == "jensen_shannon" and beta == 0):
        return naive_kl(t, s)
    if kind == "reverse_kl" or (kind == "jensen_shannon" and beta == 1):
        return naive_kl(s, t)
    m = [(1 - beta) * a + beta * b for a, b in zip(s, t, strict=True)]
    return beta * naive_kl(t, m) + (1 - beta) * naive_kl(s, m)


def logits_pair() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(2, 4, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.tensor([[True, True, False, True], [False, True, False, False]])
    return student, teacher, mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_the_mean_of_explicit_sums(kind: Divergence, beta: float, temperature: float) -> None:
    student, teacher, mask = logits_pair()
    positions = [(0, 0), (0, 1), (0, 3), (1, 1)]
    terms = [naive_divergence(kind, student[p] / temperature, teacher[p] / temperature, beta) for p in positions]
    found = divergence(kind, student, teacher, mask, beta=beta, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * sum(terms) / 4, rel=1e-12)
    assert divergence(kind, teacher, teacher, mask, beta=beta).item() == pytest.approx(0.0, abs=1e-15)


def test_divergence_reproduces_trl() -> None:
    """Values of TRL's generalized_jsd_loss (seed 0, student and teacher randn(2, 3, 7), batchmean over 2 rows)."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    mask = torch.ones(2, 3, dtype=torch.bool)
    found = [divergence("jensen_shannon", student, teacher, mask, beta=b).item() * 3 for b in (0, 0.1, 0.5, 0.9, 1)]
    assert found == pytest.approx([2.755662, 0.218795, 0.523846, 0.198725, 2.366857], abs=1e-6)


def test_jensen_shannon_is_symmetric_bounded_and_has_the_stated_limits() -> None:
    student, teacher, mask = logits_pair()
    half = divergence("jensen_shannon", student, teacher, mask).item()
    assert half == pytest.approx(divergence("jensen_shannon", teacher, student, mask).item(), rel=1e-14)
    assert 0 < half < divergence("jensen_shannon", 100 * student, 100 * teacher, mask).item() <= math.log(2)
    small = 1e-5  # JSD / (beta (1 - beta)) has an error of order beta at the ends
    for beta, limit in ((small, "forward_kl"), (1 - small, "reverse_kl")):
        scaled = divergence("jensen_shannon", student, teacher, mask, beta=beta).item() / small
        assert scaled == pytest.approx(divergence(limit, student, teacher, mask).item(), rel=1e-3)  # type: ignore[arg-type]


def test_gradients() -> None:
    """d forward KL / d s = (softmax(s) - softmax(t)) / N on the mask and zero off it; the others by differences."""
    student, teacher, mask = logits_pair()
    student.requires_grad_()
    divergence("forward_kl", student, teacher, mask).backward()  # type: ignore[no-untyped-call]
    expected = (student.softmax(-1) - teacher.softmax(-1)).detach() * mask[..., None] / 4
    assert student.grad is not None
    assert torch.allclose(student.grad, expected, atol=1e-15)
    for kind in KINDS:
        assert torch.autograd.gradcheck(
            lambda s, kind=kind: divergence(kind, s, teacher, mask, beta=0.3, temperature=1.5), student
        )


def test_the_whole_vocabulary_counts_not_the_likeliest_token_alone() -> None:
    """Teachers that agree on the likeliest token and its probability, and differ in what comes after it."""
    student = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    tails = ([0.6, 0.1, 0.1, 0.1, 0.1], [0.6, 0.37, 0.01, 0.01, 0.01])
    losses = [divergence("forward_kl", student, torch.tensor([p]).double().log(), torch.tensor([True])) for p in tails]
    assert [loss.item() for loss in losses] == pytest.approx(
        [math.log(5) + sum(p * math.log(p) for p in tail) for tail in tails], abs=1e-6
    )
    (gradient,) = torch.autograd.grad(losses[1], student)
    assert gradient[0].tolist() == pytest.approx([0.2 - p for p in tails[1]], abs=1e-6)


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher, mask = logits_pair()
    rounded = student.bfloat16(), teacher.bfloat16()
    expected = divergence("forward_kl", rounded[0].double(), rounded[1].double(), mask)
    assert divergence("forward_kl", *rounded, mask).item() == pytest.approx(expected.item(), rel=1e-5)


def test_divergence_refuses_bad_input() -> None:
    student, teacher, mask = logits_pair()
    with pytest.raises(ValueError, match="align the teacher"):
        divergence("forward_kl", student[:, 1:], teacher, mask)
    with pytest.raises(ValueError, match="must be boolean"):
        divergence("forward_kl", student, teacher, mask.float())
    with pytest.raises(ValueError, match="selects no position"):
        divergence("forward_kl", student, teacher, mask & False)
    with pytest.raises(ValueError, match="temperature = 0"):
        divergence("forward_kl", student, teacher, mask, temperature=0)
    with pytest.raises(ValueError, match="beta = 1.5"):
        divergence("jensen_shannon", student, teacher, mask, beta=1.5)
    with pytest.raises(ValueError, match="unknown divergence 'hellinger'"):
        divergence("hellinger", student, teacher, mask)  # type: ignore[arg-type]
