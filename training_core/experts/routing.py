"""The first pass: which expert a question needs, read off the model as it is.

    probabilities (questions, experts + 1): column 0 is "none", column k is expert k

`PromptRouter` asks in words, as [1] does: p(k) = p(name_k | prompt) / sum_j p(name_j | prompt), with the model's own
probability of each expert's name behind a prompt that offers all of them. `ClassifierRouter` is linear:

    p = softmax(W y + b)                  y (d_model,): the final hidden state at the last token of the prompt

and is fitted to minimise the mean over classes of -log p(class), plus penalty / 2 |W|^2 where y has mean 0 and mean
variance 1. It is stored, and used, as int8 weights with a float16 scale and a float16 bias for each class.

References
    [1] Sun, Cetin and Tang, "Transformer^2: Self-adaptive LLMs" (2025, arXiv:2501.06252), section 3.2 A and B.

**Differs from the paper.** The classifier of [1] is one more expert, which answers in words. Here it is a linear layer
on what the first pass has computed anyway: no expert to be trained or loaded, and the pass ends with the prompt.

Shape legend: Q prompts or questions, N of them for fitting, D model width, C = experts + 1 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.models.cognate import Cognate
from training_core.questions.attempts import question_text
from training_core.questions.lessons import Example, rows_of
from training_core.questions.likelihood import ROWS_AT_ONCE
from training_core.questions.question import Question

NONE = "other"  # the name of no expert
PENALTY = 1e-3
MOST_CODE = 127
CONVERGED = 1e-5  # largest entry of the gradient at which a fit has ended
MOST_ITERATIONS = 2000

Prompt = Sequence[int]  # token ids, without the END_OF_TEXT in front


class Router(Protocol):
    """Tells which expert questions need."""

    @property
    def name(self) -> str:
        """What it is called in results."""

    @property
    def num_experts(self) -> int:
        """K; there is one column more."""

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """Of none and of each expert, (questions, experts + 1) float64, rows summing to 1."""

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """Tokens that the first pass takes the model through, padding not counted."""


@runtime_checkable
class PromptReader(Router, Protocol):
    """A router that reads any prompt."""

    def of_prompts(self, prompts: Sequence[Prompt]) -> Tensor:
        """`probabilities` of prompts."""


def prompts_of(questions: Sequence[Question], tokenizer: Tokenizer) -> list[list[int]]:
    """What a model is given of each question."""
    return [tokenizer.encode(question_text(question)).ids for question in questions]


def windows_like(prompts: Sequence[Prompt], text_NS: Tensor, generator: torch.Generator) -> list[list[int]]:
    """The beginning of each row of corpus tokens (rows, positions), as long as one of the prompts, which is drawn: so
    that length does not tell text from questions."""
    lengths = [len(prompts[place]) for place in torch.randint(len(prompts), (len(text_NS),), generator=generator)]
    return [row_S[:length].tolist() for row_S, length in zip(text_NS, lengths, strict=True)]


@torch.no_grad()
def final_states(model: Cognate, prompts: Sequence[Prompt]) -> Tensor:
    """y at the last token of each prompt, END_OF_TEXT in front, (prompts, d_model) float64.

    Raises:
        ValueError: for a prompt longer than max_seq_len.
    """
    device = next(model.parameters()).device
    found_QD = torch.zeros(len(prompts), model.config.d_model, dtype=torch.float64)
    for places in _alike([len(prompt) + 1 for prompt in prompts], model.config.max_seq_len):
        ends_B = torch.tensor([len(prompts[place]) for place in places])
        tokens_BS = torch.full((len(places), int(ends_B.max()) + 1), END_OF_TEXT_ID)
        for row, place in enumerate(places):
            tokens_BS[row, 1 : len(prompts[place]) + 1] = torch.tensor(prompts[place])
        y_BSD = model.trace(tokens_BS.to(device)).y.cpu().double()
        found_QD[places] = y_BSD[torch.arange(len(places)), ends_B]
    return found_QD


class PromptRouter:
    """The model is asked in words, `names` being those of the experts; nothing is trained."""

    name = "prompt"

    def __init__(self, model: Cognate, tokenizer: Tokenizer, names: Sequence[str]) -> None:
        """Raises:
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
        """K."""
        return len(self.names) - 1

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """(questions, experts + 1)."""
        return self.of_prompts(prompts_of(questions, self.tokenizer))

    @torch.no_grad()
    def of_prompts(self, prompts: Sequence[Prompt]) -> Tensor:
        """(prompts, experts + 1).

        Raises:
            ValueError: when a prompt does not fit max_seq_len with what is put around it.
        """
        device = next(self.model.parameters()).device
        examples = self._examples(prompts)
        lengths = [len(example.prompt) + len(example.completion) for example in examples]
        found = torch.zeros(len(examples), dtype=torch.float64)
        for places in _alike(lengths, self.model.config.max_seq_len):
            rows = rows_of([examples[place] for place in places])
            log_probs_BSV = self.model(rows.inputs_BS.to(device)).logits.cpu().double().log_softmax(-1)
            told_BS = log_probs_BSV.gather(-1, rows.targets_BS[..., None])[..., 0]
            found[places] = (told_BS * rows.mask_BS).sum(1)
        return found.view(len(prompts), len(self.names)).softmax(1)

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """Every prompt is read once with each name."""
        examples = self._examples(prompts_of(questions, self.tokenizer))
        return sum(len(example.prompt) + len(example.completion) for example in examples)

    def _examples(self, prompts: Sequence[Prompt]) -> list[Example]:
        return [
            Example((*self._preamble, *prompt), tuple(name), (True,) * len(name))
            for prompt in prompts
            for name in self._completions
        ]


@dataclass(frozen=True, slots=True)
class Head:
    """A linear classifier as it is stored: `codes` int8 (classes, d_model), `scales` and `biases` float16 (classes,).

    W = scale * code / 127, row by row.
    """

    codes_CD: Tensor
    scales_C: Tensor
    biases_C: Tensor

    @classmethod
    def of(cls, weights_CD: Tensor, biases_C: Tensor) -> Self:
        """The nearest one to weights and biases.

        Raises:
            ValueError: when they are beyond float16.
        """
        scales_C = weights_CD.abs().amax(1).to(torch.float16)
        if not bool(torch.isfinite(scales_C).all() and torch.isfinite(biases_C.to(torch.float16)).all()):
            raise ValueError("weights and biases of a head must be finite and at most 65504: raise the penalty")
        unit_C = scales_C.double().clamp(min=torch.finfo(torch.float16).tiny)
        codes_CD = (weights_CD.double() / unit_C[:, None] * MOST_CODE).round().clamp(-MOST_CODE, MOST_CODE)
        return cls(codes_CD.to(torch.int8), scales_C, biases_C.to(torch.float16))

    def probabilities(self, y_QD: Tensor) -> Tensor:
        """Of hidden states (prompts, d_model): (prompts, classes) float64."""
        return (y_QD.double() @ self.weights().T + self.biases_C.double()).softmax(1)

    def weights(self) -> Tensor:
        """W (classes, d_model) float64."""
        return self.codes_CD.double() * (self.scales_C.double() / MOST_CODE)[:, None]

    @property
    def num_bytes(self) -> int:
        """What it takes to store it."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors("").values())

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """As tensors of a bundle."""
        return {f"{prefix}codes": self.codes_CD, f"{prefix}scales": self.scales_C, f"{prefix}biases": self.biases_C}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """What `tensors` wrote."""
        return cls(*(tensors[f"{prefix}{name}"] for name in ("codes", "scales", "biases")))


def fit_head(y_ND: Tensor, labels_N: Tensor, num_classes: int, penalty: float = PENALTY) -> Head:
    """The head that tells classes 0 .. num_classes - 1 apart, each counting alike however many rows it has. By L-BFGS
    in float64 from 0: the problem has one minimum, and nothing is drawn.

    Raises:
        ValueError: when a class has no rows, the penalty is not positive, or the fit does not end.
    """
    counts_C = torch.bincount(labels_N, minlength=num_classes).double()
    if len(counts_C) > num_classes or not bool((counts_C > 0).all()) or penalty <= 0:
        raise ValueError(
            f"every one of {num_classes} classes needs examples and the penalty must be positive, got "
            f"{counts_C.int().tolist()} examples and {penalty}: ask questions of every expert, and show text for none"
        )
    mean_D = y_ND.double().mean(0)
    scale = float((y_ND.double() - mean_D).square().mean().sqrt())
    x_ND = (y_ND.double() - mean_D) / scale
    share_N = 1 / (num_classes * counts_C[labels_N])
    weights_CD = torch.zeros(num_classes, x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    biases_C = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights_CD, biases_C],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=CONVERGED / 10,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        told_N = F.cross_entropy(x_ND @ weights_CD.T + biases_C, labels_N, reduction="none")
        return (told_N * share_N).sum() + penalty / 2 * (weights_CD**2).sum()

    def step() -> Tensor:
        optimizer.zero_grad()
        total = loss()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(step)  # type: ignore[no-untyped-call]
        left = max(float(g.abs().max()) for g in torch.autograd.grad(loss(), [weights_CD, biases_C]))
    if not left < CONVERGED:
        raise ValueError(f"the fit must end with a gradient below {CONVERGED}, got {left:.2g}: raise the penalty")
    stored = Head.of(weights_CD.detach() / scale, torch.zeros(num_classes))
    return Head.of(stored.weights(), biases_C.detach() - stored.weights() @ mean_D)


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
        """Learn from training questions, whose class is their family's expert (0 for a family that has none), and
        from windows of corpus text, whose class is none.

        Raises:
            ValueError: as `fit_head` and `final_states`.
        """
        labels = [expert_of.get(question.family, 0) for question in questions] + [0] * len(text)
        y_ND = final_states(model, [*prompts_of(questions, tokenizer), *text])
        return cls(model, tokenizer, fit_head(y_ND, torch.tensor(labels), max(expert_of.values()) + 1, penalty))

    @property
    def num_experts(self) -> int:
        """K."""
        return len(self.head.scales_C) - 1

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """(questions, experts + 1)."""
        return self.of_prompts(prompts_of(questions, self.tokenizer))

    def of_prompts(self, prompts: Sequence[Prompt]) -> Tensor:
        """(prompts, experts + 1)."""
        return self.head.probabilities(final_states(self.model, prompts))

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """Every prompt is read once, END_OF_TEXT in front."""
        return sum(len(prompt) + 1 for prompt in prompts_of(questions, self.tokenizer))


def _alike(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Places in batches, short ones first."""
    if lengths and max(lengths) > limit:
        raise ValueError(f"a prompt of {max(lengths)} tokens to be routed exceeds max_seq_len = {limit}: shorten it")
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    return [order[start : start + ROWS_AT_ONCE] for start in range(0, len(order), ROWS_AT_ONCE)]
