"""Majority voting by a council of archetypes, compared with self-consistency at equal token budgets.

An archetype is a short text in front of the question. Each archetype answers every question once, at the same
temperature; empty answers do not vote. Ties are broken at random, by a generator seeded with the question's number.

Baselines: the single greedy answer, and *self-consistency* (Wang et al., 2022, arXiv:2203.11171): votes on the plain
question, without any archetype, drawn at the same temperature as often as the council's token budget allows. A council
that does not beat self-consistency gains nothing from its archetypes.

Agreement is Fleiss' kappa (Fleiss, 1971, "Measuring nominal scale agreement among many raters", eqs. 3, 5 and 7): with
n_ij the number of raters that assign subject i to category j, N subjects and n raters,

    P_i = (sum_j n_ij^2 - n) / (n (n - 1)),   p_j = sum_i n_ij / (N n),
    kappa = (mean_i P_i - sum_j p_j^2) / (1 - sum_j p_j^2).

Categories are the distinct answers over all questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from training_core.phases.p5_curriculum.estimates import paired_gain, share
from training_core.tasks.questions.attempts import Attempt
from training_core.tasks.questions.ladder import is_right
from training_core.tasks.questions.question import Question, normalise_answer
from training_core.training.loop import step_generator

VOTES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Archetype:
    """A voter of the council: its name, and the text that it puts in front of the question."""

    name: str
    prompt: str

    @property
    def preamble(self) -> str:
        """The prompt followed by a line break."""
        return f"{self.prompt}\n"


ARCHETYPES = (
    Archetype("clerk", "Work step by step."),
    Archetype("engineer", "Use a tool."),
    Archetype("skeptic", "Check it twice."),
    Archetype("scholar", "Think of the rule."),
    Archetype("child", "Say what you see."),
)


class CouncilAnswers(Protocol):
    """Interface of whatever attempts questions, as `training_core.tasks.questions.attempts.Answerer` does."""

    def attempt(
        self,
        questions: Sequence[Question],
        generator: torch.Generator,
        *,
        hints: Sequence[int] | None = None,
        preamble: str = "",
        temperature: float = 0.0,
    ) -> list[Attempt]: ...


@dataclass(frozen=True, slots=True)
class Session:
    """One question put to a group of voters: their attempts, and the answer chosen by majority."""

    question: Question
    attempts: tuple[Attempt, ...]
    decided: str

    @property
    def right(self) -> bool:
        """Whether the chosen answer is correct."""
        return is_right(self.question, self.decided)

    @property
    def num_tokens(self) -> int:
        """The number of tokens read and written by all voters."""
        return sum(attempt.num_tokens for attempt in self.attempts)


def convene(
    answerer: CouncilAnswers, questions: Sequence[Question], temperature: float, seed: int, draws: int = 0
) -> list[Session]:
    """Let every archetype answer every question once.

    `draws` selects an independent random stream for the same seed.
    """
    by_archetype = [
        answerer.attempt(
            questions,
            step_generator(seed, -1000 * (draws + 1) - number),
            preamble=archetype.preamble,
            temperature=temperature,
        )
        for number, archetype in enumerate(ARCHETYPES)
    ]
    return _sessions(questions, by_archetype, seed)


def self_consistency(
    answerer: CouncilAnswers, questions: Sequence[Question], tokens: int, temperature: float, seed: int, draws: int = 0
) -> list[Session]:
    """Vote on the plain questions, in as many whole rounds as fit into the budget of `tokens` for all questions.

    At least one round is drawn. Another one follows while the rounds so far plus one of their mean length fit.
    """
    rounds: list[list[Attempt]] = []
    used = 0
    while not rounds or used + used / len(rounds) <= tokens:
        generator = step_generator(seed, -1000 * (draws + 1) - len(rounds))
        rounds.append(answerer.attempt(questions, generator, temperature=temperature))
        used += sum(attempt.num_tokens for attempt in rounds[-1])
    return _sessions(questions, rounds, seed)


def majority(answers: Sequence[str], generator: torch.Generator) -> str:
    """Return the answer with the most votes, as its first voter spelled it; ties are broken at random.

    Answers that are equal after `normalise_answer` count as one, and empty answers do not vote. Without any vote the
    result is empty.
    """
    spelled: dict[str, str] = {}
    votes: Counter[str] = Counter()
    for answer in answers:
        if answer.strip():
            key = normalise_answer(answer)
            votes[key] += 1
            spelled.setdefault(key, answer)
    if not votes:
        return ""
    most = max(votes.values())
    tied = sorted(key for key, count in votes.items() if count == most)
    return spelled[tied[int(torch.randint(len(tied), (1,), generator=generator))]]


def fleiss_kappa(counts: Tensor) -> float | None:
    """Return Fleiss' kappa from counts (subjects, categories): 1 for full agreement, 0 for agreement by chance.

    The result is None where kappa is undefined, because all ratings of all subjects are the same.

    Raises:
        ValueError: when subjects have different numbers of ratings, or fewer than two.
    """
    n_NK = counts.double()
    raters = n_NK.sum(1)
    if n_NK.dim() != 2 or not len(n_NK) or float(raters.min()) < 2 or bool((raters != raters[0]).any()):
        raise ValueError(
            f"every subject needs the same number of ratings, at least 2, got {sorted(set(raters.tolist()))}: count an "
            "absent rating as a category of its own"
        )
    n = raters[0]
    observed = (((n_NK**2).sum(1) - n) / (n * (n - 1))).mean()  # eq. 3
    chance = (n_NK.sum(0) / n_NK.sum()).square().sum()  # eq. 5
    return None if float(chance) == 1 else float((observed - chance) / (1 - chance))  # eq. 7


def agreement(sessions: Sequence[Session]) -> float | None:
    """Return Fleiss' kappa of the voters' answers; an empty answer is a category of its own."""
    spelled = [[normalise_answer(a.answer) if a.answer.strip() else "" for a in s.attempts] for s in sessions]
    categories = sorted({answer for answers in spelled for answer in answers})
    counts = [[answers.count(category) for category in categories] for answers in spelled]
    return fleiss_kappa(torch.tensor(counts))


def measure_council(
    answerer: CouncilAnswers, questions: Sequence[Question], temperature: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Evaluate the council, self-consistency at equal token budgets, and greedy answers on the same questions.

    Returns `metrics` and the exhibit (`shown`). CIs of gains are paired: both sides of a question are resampled
    together.
    """
    single = answerer.attempt(questions, step_generator(seed, -1), temperature=0.0)
    council = convene(answerer, questions, temperature, seed)
    tokens = sum(session.num_tokens for session in council)
    plain = self_consistency(answerer, questions, tokens, temperature, seed, draws=1)
    right = {
        "single": [attempt.right for attempt in single],
        "self_consistency": [session.right for session in plain],
        "council": [session.right for session in council],
    }
    kappa = agreement(council)
    shares = {name: share(values) for name, values in right.items()}
    metrics = {f"{name}_accuracy": estimate.value for name, estimate in shares.items()}
    metrics["self_consistency_votes"] = len(plain[0].attempts)
    if kappa is not None:
        metrics["council_agreement"] = kappa
    for name in ("self_consistency", "single"):
        metrics |= paired_gain(right["council"], right[name]).metrics(f"council_gain_over_{name}")
    by_archetype = [[session.attempts[number].right for session in council] for number in range(len(ARCHETYPES))]
    shown: dict[str, Any] = {
        "archetypes": [
            {"name": archetype.name, "prompt": archetype.prompt, "accuracy": sum(hits) / len(hits)}
            for archetype, hits in zip(ARCHETYPES, by_archetype, strict=True)
        ],
        "agreement": kappa,
        **{name: estimate.document() for name, estimate in shares.items()},
        "tokens": {
            "single": sum(attempt.num_tokens for attempt in single) / len(questions),
            "self_consistency": sum(session.num_tokens for session in plain) / len(questions),
            "council": tokens / len(questions),
        },
        "votes": [_shown(session) for session in council[:VOTES_SHOWN]],
    }
    return {"metrics": metrics, "shown": shown}


def _sessions(questions: Sequence[Question], rounds: Sequence[Sequence[Attempt]], seed: int) -> list[Session]:
    return [
        Session(question, attempts, majority([a.answer for a in attempts], step_generator(seed, -5_000_000 - number)))
        for number, (question, *attempts_) in enumerate(zip(questions, *rounds, strict=True))
        for attempts in (tuple(attempts_),)
    ]


def _shown(session: Session) -> dict[str, Any]:
    return {
        "question": session.question.prompt,
        "answer": session.question.answer,
        "votes": [
            {"archetype": archetype.name, "answer": attempt.answer}
            for archetype, attempt in zip(ARCHETYPES, session.attempts, strict=True)
        ],
        "decided": session.decided,
        "right": session.right,
    }
