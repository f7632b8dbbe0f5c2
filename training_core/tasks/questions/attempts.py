"""Attempts at questions: a model generates, tools answer its calls, and its answer is compared with the known one.

A hint reveals a prefix of the worked completion: none of it (0), a third (1), two thirds (2), or all of it (3), in
which case nothing is left to generate and the attempt is a demonstration. A completion of one token has no prefix, so
every hint on it is a demonstration. Training examples never carry the hint in the prompt: hinted tokens stand where the
model would have generated them (the rationalisation of STaR, Zelikman et al., 2022, arXiv:2203.14465, section 3.3, with
the hint as a prefix).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers import Tokenizer

from training_core.data.task_bank import ANSWER_CUE
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate
from training_core.tasks.questions.ladder import is_right
from training_core.tasks.questions.question import Question
from training_core.tasks.questions.tools import TRIGGERS, ToolBox, ToolCall, segments
from training_core.text.sampling import continue_rows

Role = Literal["own", "hint", "tool"]
HINTS = range(4)
SHOWN = 3  # the hint that reveals the whole completion
MOST_CALLS = 4  # tool calls answered in one attempt
ALIKE = 1.5  # largest ratio of prompt lengths within one batch


@dataclass(frozen=True, slots=True)
class Attempt:
    """A completion of a question's prompt, token by token.

    prompt_ids: preamble and question, without the leading END_OF_TEXT. completion_ids: the completion, including its
    END_OF_TEXT if one was sampled. roles: who wrote each completion token. log_probs: natural log-probabilities of the
    model's own tokens at temperature 1; 0.0 for the others. given: the text that the hint revealed, a prefix of `text`,
    the whole completion. right: whether `answer`, extracted from the completion, equals the known one.
    """

    question: Question
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    roles: tuple[Role, ...]
    log_probs: tuple[float, ...]
    hint: int
    given: str
    text: str
    answer: str
    right: bool
    calls: tuple[ToolCall, ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)


def question_text(question: Question) -> str:
    """Return the prompt that a model is given for a question."""
    return f"Question: {question.prompt}\nAnswer:"


def completion_text(question: Question) -> str:
    """Return the target completion: the worked solution, if there is one, and the answer."""
    return f" {question.solution}{ANSWER_CUE}{question.answer}" if question.solution else f" {question.answer}"


def answer_in(text: str) -> str:
    """Extract the answer from a completion: the text after the last cue, else after the last tool output, else all."""
    if ANSWER_CUE.strip() in text:
        return text.rpartition(ANSWER_CUE.strip())[2].strip()
    pieces = list(segments(text))
    outputs = [place for place, (_, from_tool) in enumerate(pieces) if from_tool]
    return "".join(piece for piece, _ in pieces[outputs[-1] + 1 if outputs else 0 :]).strip()


def encode_completion(tokenizer: Tokenizer, question: Question) -> tuple[list[int], list[Role]]:
    """Tokenize the worked completion, END_OF_TEXT included, and return its ids and roles."""
    ids: list[int] = []
    roles: list[Role] = []
    # Tool output is encoded separately, exactly as during generation: merges must not cross its boundaries.
    for piece, from_tool in segments(completion_text(question)):
        encoded = tokenizer.encode(piece).ids
        ids += encoded
        roles += ["tool" if from_tool else "hint"] * len(encoded)
    return [*ids, END_OF_TEXT_ID], [*roles, "hint"]


class Answerer:
    """A model with tools that answers questions in batches."""

    def __init__(self, model: Cognate, tokenizer: Tokenizer, tools: ToolBox, max_tokens: int) -> None:
        self.model, self.tokenizer, self.tools, self.max_tokens = model, tokenizer, tools, max_tokens
        vocabulary = tokenizer.get_vocab()
        self._closing = {number for token, number in vocabulary.items() if any(c in token for c in TRIGGERS)}

    def attempt(
        self,
        questions: Sequence[Question],
        generator: torch.Generator,
        *,
        hints: Sequence[int] | None = None,
        preamble: str = "",
        temperature: float = 0.0,
    ) -> list[Attempt]:
        """Return one attempt for each question, in the order given. `hints` has one entry per question, 0 by default.

        Raises:
            ValueError: for a hint outside 0 .. 3, or a preamble, question and completion longer than max_seq_len.
            SandboxUnavailableError: when a tool's isolation fails.
        """
        starts = [
            self._start(question, hint, preamble)
            for question, hint in zip(questions, hints if hints is not None else [0] * len(questions), strict=True)
        ]
        for group in _alike([start for start in starts if not start.complete]):
            self._draw(group, generator, temperature)
        return [self._finished(start) for start in starts]

    def _draw(self, starts: Sequence[_Start], generator: torch.Generator, temperature: float) -> None:
        def interject(row: int, written: Sequence[int]) -> Sequence[int]:
            start = starts[row]
            if written[-1] not in self._closing or len(start.calls) >= MOST_CALLS:
                return ()
            answered = self.tools.answer(self.tokenizer.decode([*start.hinted, *written]))
            if answered is None:
                return ()
            start.calls.append(answered[0])
            return tuple(self.tokenizer.encode(answered[1]).ids)

        rows = [(*start.prompt, *start.hinted) for start in starts]
        drawn = continue_rows(
            self.model,
            rows,
            self.max_tokens,
            generator,
            temperature=temperature,
            interject=interject,
        )
        for start, row in zip(starts, drawn, strict=True):
            start.written += row.ids
            start.roles += ["own" if own else "tool" for own in row.own]
            start.log_probs += row.log_probs

    def _start(self, question: Question, hint: int, preamble: str) -> _Start:
        if hint not in HINTS:
            raise ValueError(f"a hint is one of {', '.join(map(str, HINTS))}, got {hint}")
        prompt = self.tokenizer.encode(preamble + question_text(question)).ids
        ids, roles = encode_completion(self.tokenizer, question)
        if hint and len(ids) == 2:  # of one token and END_OF_TEXT no prefix can be revealed
            hint = SHOWN
        shown = len(ids) if hint == SHOWN else min(math.ceil(hint * (len(ids) - 1) / SHOWN), len(ids) - 2)
        # A hint never ends inside a tool's output: the model could not continue it.
        while 0 < shown < len(ids) and roles[shown] == "tool":
            shown += 1
        completion = shown if hint == SHOWN else max(0, shown) + self.max_tokens
        total, longest = len(prompt) + completion, self.model.config.max_seq_len
        if total > longest:
            raise ValueError(
                f"{len(prompt)} tokens of prompt and {completion} of completion exceed max_seq_len = {longest}"
                f" ({question.prompt!r:.60}): leave out such questions, or lower max_tokens"
            )
        return _Start(question, hint, tuple(prompt), tuple(ids[: max(0, shown)]), roles[: max(0, shown)])

    def _finished(self, start: _Start) -> Attempt:
        ids = (*start.hinted, *start.written)
        text = self.tokenizer.decode([i for i in ids if i != END_OF_TEXT_ID])
        answer = answer_in(text)
        return Attempt(
            start.question,
            start.prompt,
            ids,
            tuple(start.roles),
            tuple([0.0] * len(start.hinted) + start.log_probs),
            start.hint,
            self.tokenizer.decode([i for i in start.hinted if i != END_OF_TEXT_ID]),
            text,
            answer,
            is_right(start.question, answer),
            tuple(start.calls),
        )


def _alike(starts: Sequence[_Start]) -> list[list[_Start]]:
    """Batches of similar prompt length, so that short prompts do not decode for long beside rows still in prefill."""
    groups: list[list[_Start]] = []
    for start in sorted(starts, key=lambda start: start.length):
        if not groups or start.length > ALIKE * groups[-1][0].length:
            groups.append([])
        groups[-1].append(start)
    return groups


class _Start:
    """An attempt in progress: the prompt, the revealed prefix, and what has been generated so far."""

    __slots__ = ("calls", "hint", "hinted", "log_probs", "prompt", "question", "roles", "written")

    def __init__(
        self, question: Question, hint: int, prompt: tuple[int, ...], hinted: tuple[int, ...], roles: list[Role]
    ) -> None:
        self.question, self.hint, self.prompt, self.hinted, self.roles = question, hint, prompt, hinted, roles
        self.written: list[int] = []
        self.log_probs: list[float] = []
        self.calls: list[ToolCall] = []

    @property
    def complete(self) -> bool:
        return self.hint == SHOWN

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.hinted)
