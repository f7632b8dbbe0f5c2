"""Practice at the edge by expert iteration: rounds of attempts, each followed by training on the correct ones.

A round asks questions of the levels just beyond those the model masters, follows each question through hints and
variants (`threads`), trains on every correct completion so far, and then estimates the edge again. This is STaR
(Zelikman et al., 2022, arXiv:2203.14465, algorithm 1) with prefix hints.

`policy_rounds` rounds of group-relative policy gradient (`policy_gradient`) may follow.

**Differs from the paper**: each round continues from the model of the previous round rather than from the first one;
tokens of tool outputs are not trained on; and each batch contains corpus text as rehearsal data, because a small model
would otherwise forget it. The target on text is the next token or, with `text.teacher`, the parent's distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from training_core.data.batches import TEXT_ONLY
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.phases.p5_curriculum.config import CurriculumConfig
from training_core.phases.p5_curriculum.policy_gradient import (
    PolicyGradientObjective,
    group_advantages,
)
from training_core.phases.p5_curriculum.threads import RoundRecord, Used, advance, open_threads
from training_core.store.atomic import write_atomically
from training_core.store.bundle import canonical_json
from training_core.store.checkpoint import DamagedCheckpointError, weights_digest
from training_core.tasks.questions.assessment import isotonic_decreasing
from training_core.tasks.questions.attempts import Answerer, Attempt
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.question import LEVELS, Question, normalise_prompt
from training_core.tasks.questions.sft_objective import BesideText, Example, LessonObjective, Memory
from training_core.training.loop import Objective, TrainingConfig, TrainingResult, step_generator, train


@dataclass(frozen=True, slots=True)
class PracticeResult:
    """The attempts, the records and the training results of all rounds."""

    attempts: tuple[tuple[Attempt, ...], ...]
    records: tuple[RoundRecord, ...]
    training: tuple[TrainingResult, ...]

    def right(self) -> list[Attempt]:
        """Return every correct attempt, with or without a hint."""
        return [attempt for attempts in self.attempts for attempt in attempts if attempt.right]


@dataclass(slots=True)
class LevelStanding:
    """The latest counts by level: questions answered correctly, and questions asked, without a hint."""

    right: dict[int, int]
    asked: dict[int, int]
    target: float

    def edge(self) -> int:
        """Return the hardest level whose isotonic accuracy reaches the target, or 0 if none does."""
        levels = sorted(self.asked)
        fitted = isotonic_decreasing([self.right[n] for n in levels], [self.asked[n] for n in levels])
        return max((level for level, p in zip(levels, fitted, strict=True) if p >= self.target), default=0)

    def focus(self, number: int) -> list[int]:
        """Return the next `number` levels beyond the edge, or the hardest ones if fewer are left."""
        first = min(self.edge() + 1, LEVELS[-1] - number + 1)
        return [level for level in LEVELS if first <= level < first + number]

    def update(self, counts: Mapping[int, tuple[int, int]]) -> None:
        """Replace the counts (right, asked) of the given levels by newer ones."""
        for level, (right, asked) in counts.items():
            self.right[level], self.asked[level] = right, asked


class Practice:
    """Practice rounds on one model, which is trained in place.

    Training questions are asked in an order determined by the seed.

    Raises:
        ValueError: when a level to be practised has no questions.
    """

    def __init__(self, model: Cognate, context: QuestionContext, config: CurriculumConfig) -> None:
        self.model, self.config, self.data, self.tools = model, config, context.training, context.tools
        self.reporter, self.checkpoint = context.reporter, context.checkpoint
        self.tokenizer = context.tokenizer
        self._parent = inference_copy(model).requires_grad_(False) if config.text.teacher else None
        self._origin = weights_digest(model)
        self.by_level = {level: _shuffled(context.train_questions, level, config.training.seed) for level in LEVELS}
        self._taken = dict.fromkeys(LEVELS, 0)
        prompts = {normalise_prompt(question.prompt) for question in context.train_questions}
        self._used = Used(prompts, context.avoided, context.world)

    def run(self, standing: LevelStanding) -> PracticeResult:
        """Run all rounds. `standing` holds the initial assessment and is updated after each round."""
        attempts: list[tuple[Attempt, ...]] = []
        records: list[RoundRecord] = []
        training: list[TrainingResult] = []
        config = self.config
        for number in range(config.practice.rounds + config.practice.policy_rounds):
            gradient = number >= config.practice.rounds
            made = self.attempt_round(number, standing.focus(config.practice.focus_levels), grouped=gradient)
            record = RoundRecord()
            for attempt in made:
                record.observe(attempt)
            standing.update(record.alone())
            self.reporter.metrics(number, _round_metrics(record, standing))
            attempts.append(tuple(made))
            records.append(record)
            right = [attempt for earlier in attempts for attempt in earlier if attempt.right]
            result = self._reinforce(number, made) if gradient else self._imitate(number, right)
            training += [] if result is None else [result]
        return PracticeResult(tuple(attempts), tuple(records), tuple(training))

    def attempt_round(self, number: int, levels: Sequence[int], *, grouped: bool = False) -> list[Attempt]:
        """Return the attempts of round `number` at questions of `levels`; a resumed run reads them from the cache."""
        questions = self._take(levels)
        path = None if self.checkpoint is None else self.checkpoint / f"attempts_{number}.json"
        identity = self._identity(questions, number)
        if path is not None and (cached := _read_attempts(path, identity)) is not None:
            # Variants drawn in later rounds must avoid these prompts, as they would without a restart.
            self._used.prompts |= {normalise_prompt(attempt.question.prompt) for attempt in cached}
            return cached
        answerer = Answerer(inference_copy(self.model), self.tokenizer, self.tools, self.config.practice.max_tokens)
        generator = step_generator(self.config.training.seed, 1_000_000 + number)
        made = self._groups(answerer, questions, generator) if grouped else self._follow(answerer, questions, generator)
        if path is not None:
            _write_attempts(path, identity, made)
        return made

    def learn_beside(
        self,
        model: Cognate,
        label: str,
        right: Sequence[Attempt],
        memory: Memory | None,
        training: TrainingConfig,
        part: tuple[int, int] | None = None,
    ) -> TrainingResult:
        """Train `model` on correct completions together with the rehearsal data of `memory`; `part` as in `train`.

        Raises:
            ValueError: when `right` is empty.
        """
        objective = LessonObjective(examples_of(right), *([] if memory is None else [memory]))
        rehearsed = [] if memory is None else list(memory.examples)
        return self._train(model, label, objective, right, training, rehearsed, part)

    def text(self, generator: torch.Generator) -> torch.Tensor:
        """Draw rows of corpus text, (rows, seq_len + 1)."""
        return self.data.batch(TEXT_ONLY, self.config.text.rows, self.config.training.seq_len + 1, generator)

    def _follow(self, answerer: Answerer, questions: Sequence[Question], generator: torch.Generator) -> list[Attempt]:
        config, record = self.config, RoundRecord()
        threads = open_threads(questions)
        made: list[Attempt] = []
        for done in range(config.practice.passes):
            going = [thread for thread in threads if not thread.retired]
            if not going:
                break
            attempts = answerer.attempt(
                [thread.question for thread in going],
                generator,
                hints=[thread.hint for thread in going],
                temperature=config.practice.attempt_temperature,
            )
            for attempt in attempts:
                record.observe(attempt)
            for thread, attempt in zip(going, attempts, strict=True):
                advance(thread, attempt, record, self._used, config.training.seed)
            made += attempts
            self.reporter.progress(done + 1, config.practice.passes, "attempting questions")
        return made

    def _groups(self, answerer: Answerer, questions: Sequence[Question], generator: torch.Generator) -> list[Attempt]:
        repeated = [question for question in questions for _ in range(self.config.practice.group_size)]
        return answerer.attempt(repeated, generator, temperature=1.0)

    def _imitate(self, number: int, right: Sequence[Attempt]) -> TrainingResult:
        """Train one round of expert iteration."""
        return self.learn_beside(
            self.model, f"practice {number}", right, None, self.config.training, self._part(number)
        )

    def _reinforce(self, number: int, attempts: Sequence[Attempt]) -> TrainingResult | None:
        """Train one round of policy gradient, or return None if no group has mixed rewards (all advantages are 0)."""
        rewards = torch.tensor([float(attempt.right) for attempt in attempts])
        advantages = group_advantages(rewards.view(-1, self.config.practice.group_size)).flatten()
        kept = advantages.nonzero().flatten().tolist()
        if not kept:
            self.reporter.progress(1, 1, "policy gradient: no group had both right and wrong attempts")
            return None
        taught = [attempts[i] for i in kept]
        objective = PolicyGradientObjective(taught, advantages[kept], self.config.policy)
        return self._train(
            self.model, f"policy {number}", objective, taught, self.config.training, part=self._part(number)
        )

    def _part(self, number: int) -> tuple[int, int]:
        """Return (first step, total steps) of a round in the learning-rate schedule, which spans all rounds."""
        config = self.config
        return number * config.training.steps, (
            config.practice.rounds + config.practice.policy_rounds
        ) * config.training.steps

    def _train(
        self,
        model: Cognate,
        label: str,
        objective: Objective,
        attempts: Sequence[Attempt],
        training: TrainingConfig,
        rehearsed: Sequence[Example] = (),
        part: tuple[int, int] | None = None,
    ) -> TrainingResult:
        def batches(generator: torch.Generator) -> torch.Tensor:
            return torch.randint(len(attempts), (training.batch_size,), generator=generator)

        taught = _TAUGHT.dump_json((list(attempts), list(rehearsed)))
        return train(
            model,
            BesideText(objective, self.text, self.config.text.weight, self._parent),
            batches,
            training,
            self.reporter,
            checkpoint=self.checkpoint,
            label=label,
            optimizer_steps_per_batch=model.config.num_supervision,
            identity=hashlib.sha256(self._origin + taught).hexdigest(),
            part=part,
        )

    def _take(self, levels: Sequence[int]) -> list[Question]:
        """Take the next questions of each level, equally many per level, cycling when a level runs out of them."""
        share = max(1, self.config.practice.questions_per_round // len(levels))
        taken: list[Question] = []
        for level in levels:
            available = self.by_level[level]
            if not available:
                raise ValueError(
                    f"level {level} has no questions for training: materialize the question bank with more of them"
                )
            first = self._taken[level]
            taken += [available[(first + i) % len(available)] for i in range(min(share, len(available)))]
            self._taken[level] += share
        return taken

    def _identity(self, questions: Sequence[Question], number: int) -> str:
        hashed = [self.config.model_dump(mode="json"), number, [q.prompt for q in questions], self.tools.sandbox_name]
        return hashlib.sha256(canonical_json(hashed) + weights_digest(self.model)).hexdigest()


def examples_of(attempts: Sequence[Attempt]) -> list[Example]:
    """Return training examples from attempts, with the tokens of tool outputs masked out of the loss."""
    return [
        Example(attempt.prompt_ids, attempt.completion_ids, tuple(role != "tool" for role in attempt.roles))
        for attempt in attempts
    ]


def _round_metrics(record: RoundRecord, standing: LevelStanding) -> Mapping[str, float]:
    metrics = {"practice/edge": float(standing.edge())}
    for level, seen in record.levels.items():
        if seen.tried_alone:
            metrics[f"practice/level_{level}_right_alone"] = seen.right_alone / seen.tried_alone
        metrics[f"practice/level_{level}_shown"] = seen.shown / seen.attempts
    return metrics


def _shuffled(questions: Sequence[Question], level: int, seed: int) -> list[Question]:
    candidates = [question for question in questions if question.level == level]
    generator = torch.Generator().manual_seed(seed + level)
    return [candidates[i] for i in torch.randperm(len(candidates), generator=generator).tolist()]


def _write_attempts(path: Path, identity: str, attempts: Sequence[Attempt]) -> None:
    write_atomically(path, identity.encode() + b"\n" + _ATTEMPTS.dump_json(list(attempts)))


def _read_attempts(path: Path, identity: str) -> list[Attempt] | None:
    """Return the cached attempts, or None if the file is missing or belongs to another identity.

    Raises:
        DamagedCheckpointError: when the file has this identity but cannot be parsed.
    """
    if not path.is_file():
        return None
    written, _, document = path.read_bytes().partition(b"\n")
    if written != identity.encode():
        return None
    try:
        return _ATTEMPTS.validate_json(document)
    except ValueError as error:
        raise DamagedCheckpointError(path, error) from error


_ATTEMPTS = TypeAdapter(list[Attempt])
_TAUGHT = TypeAdapter(tuple[list[Attempt], list[Example]])
