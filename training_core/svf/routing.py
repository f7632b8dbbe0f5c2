"""Routing, the first of two passes: the choice of an expert for a question, by the model without experts.

    probabilities (questions, experts + 1): column 0 is "none", column k is expert k

`PromptRouter` asks in words, as [1] does: p(k) = p(name_k | prompt) / sum_j p(name_j | prompt), where p is the model's
own probability of an expert's name after a prompt that offers all names. `ClassifierRouter` is linear:

    p = softmax(W y + b)                  y (d_model,): the final hidden state at the last token of the prompt

and minimises the mean over classes of -log p(class), plus penalty / 2 |W|^2, with y standardised to mean 0 and mean
variance 1. It is stored and used as int8 weights with a float16 scale and a float16 bias per class.

References
    [1] Sun, Cetin and Tang, "Transformer^2: Self-adaptive LLMs" (2025, arXiv:2501.06252), section 3.2 A and B.

**Differs from the paper.** The classifier of [1] is an additional expert that answers in words. Here it is a linear
layer on the hidden state of the first pass: no expert has to be trained or loaded, and the pass ends with the prompt.

Shape legend: Q prompts or questions, N of them for fitting, D model width, C = experts + 1 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate
from training_core.nn.linear_head import PENALTY, Head, fit_head
from training_core.tasks.questions.attempts import question_text
from training_core.tasks.questions.likelihood import ROWS_AT_ONCE
from training_core.tasks.questions.question import Question
from training_core.tasks.questions.sft_objective import Example, rows_of

NONE = "other"  # offered beside the experts' names; stands for no expert

Prompt = Sequence[int]  # token ids, without the leading END_OF_TEXT


class Router(Protocol):
    """Assigns experts to questions."""

    @property
    def name(self) -> str:
        """Name of the router in results."""

    @property
    def num_experts(self) -> int:
        """Number of experts K; probabilities have K + 1 columns."""

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """Return the probabilities of no expert and of each expert: (questions, experts + 1) float64, rows sum to 1."""

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """Return the number of tokens that the first pass processes, without padding."""


@runtime_checkable
class PromptReader(Router, Protocol):
    """A router that can route any prompt, not only questions."""

    def of_prompts(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return `probabilities` for token-id prompts."""


def prompts_of(questions: Sequence[Question], tokenizer: Tokenizer) -> list[list[int]]:
    """Tokenize the prompt of each question."""
    return [tokenizer.encode(question_text(question)).ids for question in questions]


def windows_like(prompts: Sequence[Prompt], text_NS: Tensor, generator: torch.Generator) -> list[list[int]]:
    """Return a prefix of each row of corpus tokens (rows, positions), with the length of a randomly drawn prompt."""
    # With the same length distribution, a classifier cannot separate text from questions by length.
    lengths = [len(prompts[place]) for place in torch.randint(len(prompts), (len(text_NS),), generator=generator)]
    return [row_S[:length].tolist() for row_S, length in zip(text_NS, lengths, strict=True)]


@torch.no_grad()
def final_states(model: Cognate, prompts: Sequence[Prompt]) -> Tensor:
    """Return the final hidden state y at the last token of each prompt (END_OF_TEXT prepended): (prompts, d_model)
    float64.

    Raises:
        ValueError: for a prompt longer than max_seq_len.
    """
    device = next(model.parameters()).device
    states_QD = torch.zeros(len(prompts), model.config.d_model, dtype=torch.float64)
    for places in _alike([len(prompt) + 1 for prompt in prompts], model.config.max_seq_len):
        ends_B = torch.tensor([len(prompts[place]) for place in places])
        tokens_BS = torch.full((len(places), int(ends_B.max()) + 1), END_OF_TEXT_ID)
        for row, place in enumerate(places):
            tokens_BS[row, 1 : len(prompts[place]) + 1] = torch.tensor(prompts[place])
        y_BSD = model.trace(tokens_BS.to(device)).y.cpu().double()
        states_QD[places] = y_BSD[torch.arange(len(places)), ends_B]
    return states_QD


class PromptRouter:
    """A router that asks the model in words for one of the experts' `names`; nothing is trained."""

    name = "prompt"

    def __init__(self, model: Cognate, tokenizer: Tokenizer, names: Sequence[str]) -> None:
        """Tokenize the preamble that offers the names, and the names as completions.

        Raises:
            ValueError: when there is no name, or two experts have the same one.
        """
        self.names = (NONE, *names)
        if not names or len(set(self.names)) < len(self.names):
            raise ValueError(f"experts need names of their own besides {NONE!r}, got {list(names)}")
        self.model, self.tokenizer = model, tokenizer
        offered = f"{', '.join(names)} or {NONE}"
        self._preamble = tokenizer.encode(f"Which kind of question is this: {offered}?\n").ids
        self._completions = [tokenizer.encode(f" {name}").ids for name in self.names]

    @property
    def num_experts(self) -> int:
        """Number of experts K."""
        return len(self.names) - 1

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """Return the routing probabilities, (questions, experts + 1)."""
        return self.of_prompts(prompts_of(questions, self.tokenizer))

    @torch.no_grad()
    def of_prompts(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return the routing probabilities of prompts, (prompts, experts + 1).

        Raises:
            ValueError: when a prompt with the preamble and an expert's name exceeds max_seq_len.
        """
        device = next(self.model.parameters()).device
        examples = self._examples(prompts)
        lengths = [len(example.prompt) + len(example.completion) for example in examples]
        name_log_probs = torch.zeros(len(examples), dtype=torch.float64)
        for places in _alike(lengths, self.model.config.max_seq_len):
            rows = rows_of([examples[place] for place in places])
            log_probs_BSV = self.model(rows.inputs_BS.to(device)).logits.cpu().double().log_softmax(-1)
            target_log_probs_BS = log_probs_BSV.gather(-1, rows.targets_BS[..., None])[..., 0]
            name_log_probs[places] = (target_log_probs_BS * rows.mask_BS).sum(1)
        return name_log_probs.view(len(prompts), len(self.names)).softmax(1)

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """Return the number of tokens of the first pass: every prompt is read once with each name."""
        examples = self._examples(prompts_of(questions, self.tokenizer))
        return sum(len(example.prompt) + len(example.completion) for example in examples)

    def _examples(self, prompts: Sequence[Prompt]) -> list[Example]:
        return [
            Example((*self._preamble, *prompt), tuple(name), (True,) * len(name))
            for prompt in prompts
            for name in self._completions
        ]


class ClassifierRouter:
    """A linear head on the model's final hidden state at the last token of the prompt."""

    name = "classifier"

    def __init__(self, model: Cognate, tokenizer: Tokenizer, head: Head) -> None:
        self.model, self.tokenizer, self.head = model, tokenizer, head

    @classmethod
    def fit(
        cls,
        model: Cognate,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        expert_of: Mapping[str, int],
        text: Sequence[Prompt],
        penalty: float = PENALTY,
    ) -> Self:
        """Fit the head on training questions, labelled with their family's expert (0 for a family without one), and on
        windows of corpus text, labelled 0.

        Raises:
            ValueError: as `fit_head` and `final_states`.
        """
        labels = [expert_of.get(question.family, 0) for question in questions] + [0] * len(text)
        y_ND = final_states(model, [*prompts_of(questions, tokenizer), *text])
        return cls(model, tokenizer, fit_head(y_ND, torch.tensor(labels), max(expert_of.values()) + 1, penalty))

    @property
    def num_experts(self) -> int:
        """Number of experts K."""
        return len(self.head.scales_C) - 1

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """Return the routing probabilities, (questions, experts + 1)."""
        return self.of_prompts(prompts_of(questions, self.tokenizer))

    def of_prompts(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return the routing probabilities of prompts, (prompts, experts + 1)."""
        return self.head.probabilities(final_states(self.model, prompts))

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """Return the number of tokens of the first pass: every prompt is read once, END_OF_TEXT included."""
        return sum(len(prompt) + 1 for prompt in prompts_of(questions, self.tokenizer))


def _alike(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices in batches of similar length, shortest first."""
    if lengths and max(lengths) > limit:
        raise ValueError(f"a prompt of {max(lengths)} tokens exceeds max_seq_len = {limit}: shorten it")
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    return [order[start : start + ROWS_AT_ONCE] for start in range(0, len(order), ROWS_AT_ONCE)]
