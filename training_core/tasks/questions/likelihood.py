"""How likely a model finds the worked completions of questions: one forward pass, nothing is drawn.

    log_prob      sum over the completion's own tokens of log p(token | question, tokens before it), natural
    exact         every one of those tokens is the likeliest, so that a greedy attempt writes this completion
    expected      exp(log_prob): the probability that an attempt drawn at temperature 1 writes this completion

Tokens that a tool puts in are read and not counted. All are narrower than a right answer: other words for it do not
count. They cost a fraction of an attempt, and `expected`, the accuracy of drawn attempts without the luck of drawing
them, tells differences of a few points between two models on a hundred questions.

Shape legend: Q questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.evaluation.intervals import difference_of_rates, rate, wilson
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.record import Estimate
from training_core.tasks.questions.attempts import encode_completion, question_text
from training_core.tasks.questions.question import Question
from training_core.tasks.questions.sft_objective import Example, rows_of

ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of each question: natural log-probability of its completion, tokens of it, and whether all are the likeliest.

    All (questions,) float64.
    """

    log_prob_Q: Tensor
    tokens_Q: Tensor
    exact_Q: Tensor

    def per_token(self) -> Tensor:
        """Geometric mean of the tokens' probabilities, of each question, in 0 .. 1."""
        return (self.log_prob_Q / self.tokens_Q).exp()

    def mean_probability(self) -> Estimate:
        """Mean over questions of `per_token`, 95 % bootstrap over questions."""
        return rate(self.per_token(), torch.ones_like(self.tokens_Q))

    def expected_Q(self) -> Tensor:
        """Probability that a drawn attempt writes the completion, of each question, in 0 .. 1."""
        return self.log_prob_Q.exp()

    def expected(self) -> Estimate:
        """Expected accuracy of drawn attempts, 95 % bootstrap over questions."""
        return rate(self.expected_Q(), torch.ones_like(self.tokens_Q))

    def exact(self) -> Estimate:
        """Share of questions whose completion a greedy attempt writes, with Wilson's interval."""
        return wilson(int(self.exact_Q.sum()), len(self.exact_Q))


def example_of(question: Question, tokenizer: Tokenizer, preamble: str = "") -> Example:
    """A question and its worked completion; what a tool puts in is not learned."""
    ids, roles = encode_completion(tokenizer, question)
    prompt = tokenizer.encode(preamble + question_text(question)).ids
    return Example(tuple(prompt), tuple(ids), tuple(role != "tool" for role in roles))


class AskedQuestions:
    """Questions with their worked completions as rows of tokens, encoded once, for many measurements of them.

    `batches` are the places of the questions in each batch of rows and the rows, short ones first.
    """

    def __init__(
        self, questions: Sequence[Question], tokenizer: Tokenizer, max_seq_len: int, preamble: str = ""
    ) -> None:
        """Raises:
        ValueError: for no questions, or one that is longer than max_seq_len with its completion.
        """
        if not questions:
            raise ValueError("there are no questions to be measured: give at least one")
        self.questions = tuple(questions)
        examples = [example_of(question, tokenizer, preamble) for question in questions]
        order = sorted(range(len(examples)), key=lambda i: _length(examples[i]))
        longest = _length(examples[order[-1]])
        if longest > max_seq_len:
            raise ValueError(
                f"a question and its completion take {longest} tokens, max_seq_len is {max_seq_len} "
                f"({questions[order[-1]].prompt!r:.60}): shorten the preamble or leave out such questions"
            )
        parts = [order[start : start + ROWS_AT_ONCE] for start in range(0, len(order), ROWS_AT_ONCE)]
        self.batches = [(places, rows_of([examples[i] for i in places])) for places in parts]

    @torch.no_grad()
    def likelihoods(self, predict: Callable[[Sequence[int], Tensor], Tensor]) -> Likelihoods:
        """Likelihoods of the completions in the order of the questions, under logits (rows, positions, vocab) that
        `predict(places, inputs)` gives for token ids (rows, positions) of the questions at those places."""
        sums = torch.zeros(3, len(self.questions), dtype=torch.float64)
        for places, rows in self.batches:
            logits_BSV = predict(places, rows.inputs_BS)
            mask_BS, targets_BS = rows.mask_BS.to(logits_BSV.device), rows.targets_BS.to(logits_BSV.device)
            logits_NV, targets_N = logits_BSV[mask_BS], targets_BS[mask_BS]  # the completions' own tokens alone
            log_probs_N = logits_NV.double().log_softmax(-1).gather(-1, targets_N[:, None])[:, 0]
            told_BS = torch.zeros(mask_BS.shape, dtype=torch.float64, device=logits_BSV.device)
            likeliest_BS = ~mask_BS
            sums[0, places] = told_BS.masked_scatter(mask_BS, log_probs_N).sum(1).cpu()
            sums[1, places] = rows.mask_BS.sum(1).double()
            sums[2, places] = (
                likeliest_BS.masked_scatter(mask_BS, logits_NV.argmax(-1) == targets_N).all(1).double().cpu()
            )
        return Likelihoods(sums[0], sums[1], sums[2])


def measure_likelihoods(
    model: Cognate, tokenizer: Tokenizer, questions: Sequence[Question], preamble: str = ""
) -> Likelihoods:
    """Likelihoods of the questions' worked completions, `preamble` in front of each, in the order given.

    Raises:
        ValueError: as `AskedQuestions`.
    """
    still = inference_copy(model)
    device = next(still.parameters()).device
    asked = AskedQuestions(questions, tokenizer, still.config.max_seq_len, preamble)
    return asked.likelihoods(lambda _, inputs_BS: still(inputs_BS.to(device)).logits)


def family_drops(questions: Sequence[Question], before: Likelihoods, after: Likelihoods) -> Mapping[str, Estimate]:
    """By family: expected accuracy `before` minus `after`, paired by question, 95 % bootstrap."""
    drops: dict[str, Estimate] = {}
    for family in sorted({question.family for question in questions}):
        there = torch.tensor([question.family == family for question in questions])
        ones = torch.ones(int(there.sum()), dtype=torch.float64)
        drops[family] = difference_of_rates(before.expected_Q()[there], after.expected_Q()[there], ones)
    return drops


def _length(example: Example) -> int:
    return len(example.prompt) + len(example.completion)
