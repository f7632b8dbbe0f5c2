"""Two-pass inference: the first pass reads the question and routes it, the second answers with the experts composed.

    w   = softmax(log p / temperature) over none and the experts, restricted to the `top` largest and renormalised
    m   = 1 + sum_k w_k (m_k - 1)                                       weight on none leaves the model unchanged

References
    [1] Sun, Cetin and Tang, "Transformer^2: Self-adaptive LLMs" (2025, arXiv:2501.06252), section 3.2, figure 2.

With `top` 1 a question gets exactly one expert at full weight, or none. In a batch every question has its own mixture.
For streamed text the matrices are composed once, and if none gets all of the weight they equal the model's own, bit for
bit.

**Does not cover**: a preamble in front of a question, which only the second pass reads.

Shape legend: Q questions, K experts, C = K + 1 classes (0 none), B rows, S positions, R singular values.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from training_core.nn.cognate import Cognate
from training_core.nn.svf import Expert, Multipliers, SVFModel, mixture
from training_core.svf.routing import PromptReader, Router
from training_core.tasks.questions.likelihood import AskedQuestions, Likelihoods
from training_core.tasks.questions.question import Question


def sparse_weights(probabilities_QC: Tensor, top: int = 1, temperature: float = 1.0) -> Tensor:
    """Return expert weights (questions, experts) float32 from probabilities of none and of each expert.

    Ties go to the first, so none takes precedence over an expert.

    Raises:
        ValueError: for a top below 1, or a temperature that is not positive.
    """
    if top < 1 or not temperature > 0:
        raise ValueError(f"top must be at least 1 and the temperature positive, got {top} and {temperature}")
    order_QC = probabilities_QC.argsort(dim=1, descending=True, stable=True)
    kept_QC = torch.zeros_like(probabilities_QC, dtype=torch.bool).scatter(1, order_QC[:, :top], True)
    heated_QC = (probabilities_QC.double().log() / temperature).masked_fill(~kept_QC, -torch.inf).softmax(1)
    return heated_QC[:, 1:].float()


@contextmanager
def composed(svf: SVFModel, multipliers: Multipliers | None) -> Iterator[Cognate]:
    """Yield the model with W' for the given multipliers (r,) written into its matrices; restore it on exit.

    With `multipliers` None it is unchanged.
    """
    before = {name: layer.weight for name, layer in svf.layers.items()}
    try:
        for name, layer in svf.layers.items():
            if multipliers is not None and name in multipliers:
                layer.weight = layer.singular.compose(multipliers[name])
        with svf.using(None) as model:
            yield model
    finally:
        for name, layer in svf.layers.items():
            layer.weight = before[name]


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of some questions: tokens read in each pass (without padding), and median seconds.

    plain_s: the second pass without experts, which is all that the unadapted model needs.
    """

    questions: int
    first_tokens: int
    second_tokens: int
    first_s: float
    second_s: float
    plain_s: float

    @property
    def relative(self) -> float:
        """Time of both passes relative to the unadapted model."""
        return (self.first_s + self.second_s) / self.plain_s


class TwoPass:
    """A model with experts and a router, whose probabilities are turned into weights by `sparse_weights`."""

    def __init__(
        self, svf: SVFModel, experts: Sequence[Expert], router: Router, top: int = 1, temperature: float = 1.0
    ) -> None:
        """Raises:
        ValueError: when the router knows another number of experts.
        """
        if not experts or router.num_experts != len(experts):
            raise ValueError(
                f"the router must know as many experts as there are, {len(experts)}, but knows {router.num_experts}: "
                "fit it again"
            )
        self.svf, self.experts, self.router = svf, tuple(experts), router
        self.top, self.temperature = top, temperature

    def weights(self, questions: Sequence[Question]) -> Tensor:
        """Run the first pass; return the weights of the experts, (questions, experts)."""
        with self.svf.using(None):
            return sparse_weights(self.router.probabilities(questions), self.top, self.temperature)

    def likelihoods(self, asked: AskedQuestions, weights_QK: Tensor | None = None) -> Likelihoods:
        """Run both passes and return the likelihoods; given weights skip the first pass."""
        weights_QK = self.weights(asked.questions) if weights_QK is None else weights_QK
        device = self._device
        multipliers = {name: m_QR.to(device) for name, m_QR in mixture(self.experts, weights_QK).items()}

        def predict(places: Sequence[int], inputs_BS: Tensor) -> Tensor:
            with self.svf.using({name: m_QR[places] for name, m_QR in multipliers.items()}) as model:
                logits_BSV: Tensor = model(inputs_BS.to(device)).logits
            return logits_BSV

        return asked.likelihoods(predict)

    @contextmanager
    def speaker(self, prompt: Sequence[int]) -> Iterator[Cognate]:
        """Yield the model composed for one prompt (token ids), for `training_core.text.generation`; restore it on exit.

        Raises:
            ValueError: when the router reads questions but not prompts.
        """
        router = self.router
        if not isinstance(router, PromptReader):
            raise ValueError(f"streaming a text needs a router that reads prompts, {router.name!r} reads none")
        with self.svf.using(None):
            weights_K = sparse_weights(router.of_prompts([prompt]), self.top, self.temperature)[0]
        multipliers = None
        if bool(weights_K.any()):
            multipliers = {name: m_R.to(self._device) for name, m_R in mixture(self.experts, weights_K).items()}
        with composed(self.svf, multipliers) as model:
            yield model

    def cost(self, asked: AskedQuestions, repeats: int = 5) -> Cost:
        """Measure the cost of both passes on these questions.

        Raises:
            ValueError: for fewer than one repeat.
        """
        if repeats < 1:
            raise ValueError(f"seconds are medians of at least one repeat, got {repeats}")
        weights_QK = self.weights(asked.questions)
        second_tokens = sum(
            int(torch.where(rows.mask_BS, torch.arange(1, rows.mask_BS.shape[1] + 1), 0).amax(1).sum())
            for _, rows in asked.batches
        )
        device = self._device

        def plain() -> None:
            with self.svf.using(None) as model:
                asked.likelihoods(lambda _, inputs_BS: model(inputs_BS.to(device)).logits)

        return Cost(
            len(asked.questions),
            self.router.tokens_read(asked.questions),
            second_tokens,
            _median_s(lambda: self.weights(asked.questions), repeats),
            _median_s(lambda: self.likelihoods(asked, weights_QK), repeats),
            _median_s(plain, repeats),
        )

    @property
    def _device(self) -> torch.device:
        return next(self.svf.model.parameters()).device


def _median_s(run: Callable[[], object], repeats: int) -> float:
    run()  # warm-up
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
