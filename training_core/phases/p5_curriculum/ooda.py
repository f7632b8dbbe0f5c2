"""Observe, orient, decide, act: a bandit that chooses how to answer each question, and when to stop.

    observe   the family of the question, and whether the model is sure: its first answer token has entropy below ln 2
    orient    a Beta posterior of success for each option in that situation, (family, sure), from counts
    decide    draw theta from each posterior (Thompson, 1933); take the option with the highest theta / expected tokens
    act       attempt the question that way; repeat until enough answers agree, the very first answer has an expected
              success of `ooda_accept` or more, or no option fits into the remaining budget

Options: *direct* (the plain question) and *tools* (the question after a text that asks for a tool), both greedy on the
first use and sampled after that, and *council* (every archetype votes). The answer is the one with the most votes;
ties go to the earliest.

The counts come from validation questions, each attempted once with every option. Only there does the loop see the
correct answers. The prior is Beta(1 + p, 2 - p) with p the option's success rate over all families, so that an unseen
family falls back on the others. The tokens read to compute the entropy count against the budget. The loop is
deterministic for a seed.

The baseline answers directly, greedily at first and then by sampling, until it has spent at least as many tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tokenizers import Tokenizer

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate
from training_core.phases.p5_curriculum.config import DecisionConfig
from training_core.phases.p5_curriculum.council import ARCHETYPES, CouncilAnswers
from training_core.phases.p5_curriculum.estimates import paired_gain, share
from training_core.tasks.questions.attempts import Attempt, question_text
from training_core.tasks.questions.ladder import is_right
from training_core.tasks.questions.question import Question, normalise_answer
from training_core.training.loop import step_generator

Option = Literal["direct", "tools", "council"]
OPTIONS: tuple[Option, ...] = ("direct", "tools", "council")
TOOLS_PREAMBLE = "Use a tool.\n"
SURE_NATS = 0.6931471805599453  # ln 2: the entropy of a choice between two equally likely tokens
ROWS_AT_ONCE = 64
EPISODES_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Observation:
    """The features of a question before it is answered.

    `entropy` is that of the first answer token, in nats; `num_tokens` is the number of tokens read.
    """

    family: str
    entropy: float
    num_tokens: int

    @property
    def situation(self) -> tuple[str, bool]:
        """The pair (family, whether the model is sure)."""
        return self.family, self.entropy < SURE_NATS


@dataclass(slots=True)
class Experience:
    """Counts of successes and trials by (situation, option), and of tokens by option. Only `learn` fills them."""

    right: Counter[tuple[tuple[str, bool], Option]] = field(default_factory=Counter)
    tried: Counter[tuple[tuple[str, bool], Option]] = field(default_factory=Counter)
    tokens: Counter[Option] = field(default_factory=Counter)

    def count(self, situation: tuple[str, bool], option: Option, right: bool, tokens: int) -> None:
        """Record one trial."""
        self.right[situation, option] += right
        self.tried[situation, option] += 1
        self.tokens[option] += tokens

    def share(self, option: Option) -> float:
        """Return the success rate of an option over all situations, with Laplace smoothing."""
        right, tried = (sum(n for (_, o), n in counts.items() if o == option) for counts in (self.right, self.tried))
        return (right + 1) / (tried + 2)

    def posterior(self, situation: tuple[str, bool], option: Option) -> tuple[float, float]:
        """Return the parameters (alpha, beta) of the Beta posterior of success."""
        right, tried, share = self.right[situation, option], self.tried[situation, option], self.share(option)
        return 1 + share + right, 2 - share + tried - right

    def expected_tokens(self, option: Option) -> float:
        """Return the mean number of tokens of an option's trials, or 1 if there were none."""
        tried = sum(n for (_, o), n in self.tried.items() if o == option)
        return self.tokens[option] / tried if tried else 1.0


@dataclass(slots=True)
class Episode:
    """The course of one question. `steps` are pairs (stage, description) for the report."""

    question: Question
    observation: Observation
    generator: torch.Generator
    tokens: int
    answers: list[str] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)
    actions: list[Option] = field(default_factory=list)
    over: bool = False

    @property
    def answer(self) -> str:
        """The answer with the most votes so far; ties go to the earliest."""
        return earliest_majority(self.answers)

    @property
    def right(self) -> bool:
        """Whether the answer is correct; only the evaluation reads this, never the loop."""
        return is_right(self.question, self.answer)


def earliest_majority(answers: Sequence[str]) -> str:
    """Return the answer with the most votes; ties go to the earliest. Empty answers do not vote."""
    keys = [normalise_answer(answer) for answer in answers if answer.strip()]
    if not keys:
        return ""
    winner = Counter(keys).most_common(1)[0][0]
    return next(answer for answer in answers if answer.strip() and normalise_answer(answer) == winner)


@torch.no_grad()
def observe(model: Cognate, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Observation]:
    """Observe every question: its family, and the entropy of the model's distribution of the first answer token."""
    device = next(model.parameters()).device
    rows = [[END_OF_TEXT_ID, *tokenizer.encode(question_text(question)).ids] for question in questions]
    observations = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        ids = torch.full((len(part), max(map(len, part))), END_OF_TEXT_ID)
        for number, row in enumerate(part):
            ids[number, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for row in part])
        log_p = model(ids.to(device)).logits[torch.arange(len(part)), last.to(device)].double().log_softmax(-1)
        entropies = -(log_p.exp() * log_p).sum(-1)
        observations += [
            Observation(question.family, entropy, len(row) - 1)
            for question, entropy, row in zip(questions[start:], entropies.tolist(), part, strict=False)
        ]
    return observations


class Controller:
    """The OODA loop. `look` observes questions, `answerer` attempts them."""

    def __init__(
        self,
        answerer: CouncilAnswers,
        look: Callable[[Sequence[Question]], Sequence[Observation]],
        config: DecisionConfig,
        seed: int,
    ) -> None:
        self.answerer, self.look, self.config, self.seed = answerer, look, config, seed
        self.experience = Experience()
        self._calls = 0

    def learn(self, questions: Sequence[Question]) -> None:
        """Attempt every question once with every option, and record the outcomes."""
        observations = self.look(questions)
        for option in OPTIONS:
            for observation, question, attempts in zip(
                observations, questions, self._attempt(option, questions, 0.0), strict=True
            ):
                right = is_right(question, earliest_majority([a.answer for a in attempts]))
                self.experience.count(observation.situation, option, right, sum(a.num_tokens for a in attempts))

    def run(self, questions: Sequence[Question]) -> list[Episode]:
        """Run one episode per question, batching the episodes of each round by option."""
        episodes = [
            Episode(question, observation, step_generator(self.seed, -6_000_000 - number), observation.num_tokens)
            for number, (question, observation) in enumerate(zip(questions, self.look(questions), strict=True))
        ]
        for episode in episodes:
            sure = "sure" if episode.observation.situation[1] else "unsure"
            text = f"{episode.observation.family}; first token's entropy {episode.observation.entropy:.2f} nats: {sure}"
            episode.steps.append(("observe", text))
        while running := [episode for episode in episodes if not episode.over]:
            groups: dict[tuple[Option, bool], list[Episode]] = {}
            for episode in running:
                if (option := self._decide(episode)) is not None:
                    groups.setdefault((option, option not in episode.actions), []).append(episode)
            for (option, greedy), group in sorted(groups.items()):
                self._act(option, group, 0.0 if greedy else self.config.answer_temperature)
        return episodes

    def _decide(self, episode: Episode) -> Option | None:
        """Return the option with the highest drawn success per token that fits the budget; None ends the episode."""
        left = self.config.ooda_budget_tokens - episode.tokens
        known = self.experience
        costs = {option: known.expected_tokens(option) for option in OPTIONS}
        # An episode gives at least one direct answer, even if nothing fits the budget.
        fitting = [o for o in OPTIONS if costs[o] <= left] or ([] if episode.answers else ["direct"])
        if not fitting:
            episode.over = True
            episode.steps.append(("decide", f"nothing fits into {max(0, left)} tokens: {episode.answer!r} it is"))
            return None
        posteriors = {o: known.posterior(episode.observation.situation, o) for o in OPTIONS}
        means = ", ".join(f"{o} {a / (a + b):.2f}" for o, (a, b) in posteriors.items())
        episode.steps.append(("orient", f"expected success: {means}"))
        drawn = {o: _draw_beta(*posteriors[o], episode.generator) for o in OPTIONS}
        chosen: Option = max(fitting, key=lambda o: drawn[o] / costs[o])
        episode.steps.append(("decide", f"{chosen}, drawn {drawn[chosen]:.2f} for {costs[chosen]:.0f} tokens"))
        return chosen

    def _act(self, option: Option, episodes: Sequence[Episode], temperature: float) -> None:
        attempted = self._attempt(option, [e.question for e in episodes], temperature)
        for episode, attempts in zip(episodes, attempted, strict=True):
            first = not episode.actions
            given = [attempt.answer for attempt in attempts]
            episode.answers += given
            episode.actions.append(option)
            episode.tokens += sum(attempt.num_tokens for attempt in attempts)
            episode.steps.append(("act", f"{option}: {', '.join(answer or '-' for answer in given)}"))
            alpha, beta = self.experience.posterior(episode.observation.situation, option)
            accepted = first and bool(episode.answer) and alpha / (alpha + beta) >= self.config.ooda_accept
            votes = Counter(normalise_answer(answer) for answer in episode.answers if answer.strip())
            if accepted or max(votes.values(), default=0) >= self.config.ooda_agreeing:
                episode.over = True
                why = f"{max(votes.values())} agree" if not accepted else "such an answer is mostly right"
                episode.steps.append(("decide", f"{why}: {episode.answer!r} it is"))

    def _attempt(self, option: Option, questions: Sequence[Question], temperature: float) -> list[tuple[Attempt, ...]]:
        """Attempt every question with one option: a single attempt each, or one by each archetype."""
        preambles = {"direct": [""], "tools": [TOOLS_PREAMBLE], "council": [a.preamble for a in ARCHETYPES]}[option]
        heat = self.config.answer_temperature if option == "council" else temperature
        rounds = []
        for preamble in preambles:
            self._calls += 1
            generator = step_generator(self.seed, -7_000_000 - self._calls)
            rounds.append(self.answerer.attempt(questions, generator, preamble=preamble, temperature=heat))
        return list(zip(*rounds, strict=True))


def direct_answers(
    answerer: CouncilAnswers, questions: Sequence[Question], tokens: int, temperature: float, seed: int
) -> tuple[list[str], int]:
    """Answer the plain questions by `earliest_majority`; return the answers and the number of tokens spent.

    Rounds over all questions, the first of them greedy, are added until at least `tokens` are spent.
    """
    rounds: list[list[Attempt]] = []
    spent = 0
    while not rounds or spent < tokens:
        generator = step_generator(seed, -8_000_000 - len(rounds))
        rounds.append(answerer.attempt(questions, generator, temperature=temperature if rounds else 0.0))
        spent += sum(attempt.num_tokens for attempt in rounds[-1])
    return [earliest_majority([a.answer for a in given]) for given in zip(*rounds, strict=True)], spent


def measure_ooda(controller: Controller, questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Compare the loop with direct answering, which spends at least as many tokens, on the same questions.

    Returns `metrics` and the exhibit (`shown`).
    """
    episodes = controller.run(questions)
    tokens = sum(episode.tokens for episode in episodes)
    heat, seed = controller.config.answer_temperature, controller.seed
    answers, direct_tokens = direct_answers(controller.answerer, questions, tokens, heat, seed)
    right = [episode.right for episode in episodes]
    direct = [is_right(question, answer) for question, answer in zip(questions, answers, strict=True)]
    accuracies = {"accuracy": share(right), "direct": share(direct)}
    actions = Counter(action for episode in episodes for action in episode.actions)
    metrics = {
        "ooda_accuracy": accuracies["accuracy"].value,
        "ooda_direct_accuracy": accuracies["direct"].value,
        **paired_gain(right, direct).metrics("ooda_gain_over_direct"),
        "ooda_tokens": tokens / len(questions),
        "direct_tokens": direct_tokens / len(questions),
        **{f"ooda_{option}_actions": float(actions[option]) for option in OPTIONS},
    }
    shown = {
        **{name: estimate.document() for name, estimate in accuracies.items()},
        "tokens": metrics["ooda_tokens"],
        "direct_tokens": metrics["direct_tokens"],
        "episodes": [
            {
                "question": episode.question.prompt,
                "expected": episode.question.answer,
                "steps": [{"stage": stage, "text": text} for stage, text in episode.steps],
                "answer": episode.answer,
                "right": episode.right,
            }
            for episode in episodes[:: max(1, len(episodes) // EPISODES_SHOWN)][:EPISODES_SHOWN]
        ],
    }
    return {"metrics": metrics, "shown": shown}


def _draw_beta(alpha: float, beta: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, beta) on a grid of its density, because torch's Beta accepts no generator."""
    x = (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024
    density = ((alpha - 1) * x.log() + (beta - 1) * (-x).log1p()).softmax(-1)
    return float(x[torch.multinomial(density, 1, generator=generator)])
