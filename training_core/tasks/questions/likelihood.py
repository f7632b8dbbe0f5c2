"""Likelihood of the worked completions of questions under a model, by teacher forcing: one forward pass, no sampling.

    log_prob      sum over the completion's own tokens of log p(token | question, tokens before it), natural
    exact         every one of those tokens is the argmax, so that greedy decoding produces this completion
    expected      exp(log_prob): the probability that sampling at temperature 1 produces this completion

Tokens inserted by a tool are conditioned on and not counted. All three are stricter than a right answer, because they
count one wording only. They cost a fraction of sampling, and `expected` is the accuracy of sampled attempts without
sampling noise: it resolves differences of a few points between two models on a hundred questions.

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
    """For each question: natural log-probability of its completion, number of tokens, and 1.0 if all are the argmax.

    All (questions,) float64.
    """

    log_prob_Q: Tensor
    tokens_Q: Tensor
    exact_Q: Tensor

    def per_token(self) -> Tensor:
        """Return the geometric mean of the token probabilities of each question, in 0 .. 1."""
        return (self.log_prob_Q / self.tokens_Q).exp()

    def mean_probability(self) -> Estimate:
        """Return the mean of `per_token` with a 95 % bootstrap interval over questions."""
        return rate(self.per_token(), torch.ones_like(self.tokens_Q))

    def expected_Q(self) -> Tensor:
        """Return the probability that a sampled attempt reproduces the completion, for each question, in 0 .. 1."""
        return self.log_prob_Q.exp()

    def expected(self) -> Estimate:
        """Return the expected accuracy of sampled attempts, with a Wilson interval, which is conservative here."""
        return wilson(float(self.expected_Q().sum()), len(self.tokens_Q))

    def exact(self) -> Estimate:
        """Return the share of questions whose completion greedy decoding reproduces, with a Wilson interval."""
        return wilson(int(self.exact_Q.sum()), len(self.exact_Q))


def example_of(question: Question, tokenizer: Tokenizer, preamble: str = "") -> Example:
    """Return a question and its worked completion as a training example; tool output is masked from the loss."""
    ids, roles = encode_completion(tokenizer, question)
    prompt = tokenizer.encode(preamble + question_text(question)).ids
    return Example(tuple(prompt), tuple(ids), tuple(role != "tool" for role in roles))


class AskedQuestions:
    """Questions with their worked completions, tokenized once for many measurements.

    `batches` holds, shortest first, the indices of the questions in each batch and their rows.
    """

    def __init__(
        self, questions: Sequence[Question], tokenizer: Tokenizer, max_seq_len: int, preamble: str = ""
    ) -> None:
        """Tokenize the questions, with `preamble` prepended to each.

        Raises:
            ValueError: for no questions, or if a question with its completion exceeds max_seq_len.
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
        """Return the likelihoods of the completions, in the order of the questions.

        `predict(places, inputs)` returns logits (rows, positions, vocab) for token ids (rows, positions) of the
        questions at those indices.
        """
        sums = torch.zeros(3, len(self.questions), dtype=torch.float64)
        for places, rows in self.batches:
            logits_BSV = predict(places, rows.inputs_BS)
            mask_BS, targets_BS = rows.mask_BS.to(logits_BSV.device), rows.targets_BS.to(logits_BSV.device)
            # Gather the completions' own tokens first: a float64 softmax over prompts, too, is ten times the work.
            logits_NV, targets_N = logits_BSV[mask_BS], targets_BS[mask_BS]
            log_probs_N = logits_NV.double().log_softmax(-1).gather(-1, targets_N[:, None])[:, 0]
            zeros_BS = torch.zeros(mask_BS.shape, dtype=torch.float64, device=logits_BSV.device)
            likeliest_BS = ~mask_BS
            sums[0, places] = zeros_BS.masked_scatter(mask_BS, log_probs_N).sum(1).cpu()
            sums[1, places] = rows.mask_BS.sum(1).double()
            sums[2, places] = (
                likeliest_BS.masked_scatter(mask_BS, logits_NV.argmax(-1) == targets_N).all(1).double().cpu()
            )
        return Likelihoods(sums[0], sums[1], sums[2])


def measure_likelihoods(
    model: Cognate, tokenizer: Tokenizer, questions: Sequence[Question], preamble: str = ""
) -> Likelihoods:
    """Return the likelihoods of the questions' worked completions, with `preamble` prepended, in the order given.

    Raises:
        ValueError: as `AskedQuestions`.
    """
    still = inference_copy(model)
    device = next(still.parameters()).device
    asked = AskedQuestions(questions, tokenizer, still.config.max_seq_len, preamble)
    return asked.likelihoods(lambda _, inputs_BS: still(inputs_BS.to(device)).logits)


def family_drops(questions: Sequence[Question], before: Likelihoods, after: Likelihoods) -> Mapping[str, Estimate]:
    """Return the drop of expected accuracy by family (`before` minus `after`), 95 % bootstrap paired by question."""
    drops: dict[str, Estimate] = {}
    for family in sorted({question.family for question in questions}):
        in_family_Q = torch.tensor([question.family == family for question in questions])
        ones = torch.ones(int(in_family_Q.sum()), dtype=torch.float64)
        drops[family] = difference_of_rates(before.expected_Q()[in_family_Q], after.expected_Q()[in_family_Q], ones)
    return drops


def _length(example: Example) -> int:
    return len(example.prompt) + len(example.completion)
