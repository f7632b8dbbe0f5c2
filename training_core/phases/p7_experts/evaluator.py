"""Evaluation of compositions of experts, on batches that all compositions share.

A feasible composition has four objectives, all minimised:

    loss      1 - mean over families of the mean expected accuracy of their questions (`questions.likelihood`)
    latency   seconds per question in two passes / seconds of the unadapted model's single pass   (`latency`)
    bytes     size of its experts in the layers that they adapt, and of the router
    text      bits per byte on windows of text, which are routed like questions

and two constraints, which are satisfied if they are at most 0:

    latency / bound - 1                      if violated, evaluation stops: "too slow"
    -(mean difference + z standard errors)   the difference is in accuracy, from the unadapted model's, on a first part
                                             of the questions, paired within families; z of a 99 % CI: "raced out"

Infeasible compositions have no objectives and cannot be on the front.

Evaluation is cheap because activations below the first adapted layer equal the unadapted model's and are cached for all
batches, each question of a batch has its own mixture, every composition is evaluated only once, and a bad one only on
few questions.

**Does not cover** token-by-token decoding: latency is that of reading questions with their completions in parallel. A
halting threshold saves no time there, because a step runs as long as any position of the batch needs it.

Shape legend: Q questions, W windows, S positions, V vocabulary, K experts, N = K + 1 answers of a router.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training_core.evaluation.windows import Windows
from training_core.nn.block import Roots
from training_core.nn.cognate import Cognate
from training_core.nn.svf import Expert, Multipliers, SVFModel, mixture
from training_core.phases.p7_experts.genome import NEVER_STOPS, Composition, Space, Structure
from training_core.tasks.questions.likelihood import AskedQuestions
from training_core.tasks.questions.question import Question

Z99 = 2.5758293035489004
NEGLIGIBLE = 1e-5  # a smaller drop in accuracy is rounding error, however consistent
FEWEST_RACED = 2  # fewest questions per family in a race, for a variance
OBJECTIVES = ("loss", "latency", "bytes", "bits_per_byte")
Status = Literal["measured", "too slow", "raced out"]


class Latency(NamedTuple):
    """Median seconds per question of two passes, and of the unadapted model's single pass, timed alternately."""

    seconds: float
    unadapted_seconds: float

    @property
    def ratio(self) -> float:
        """Two passes over a single one."""
        return self.seconds / self.unadapted_seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """The evaluation of a composition; `objectives` are in the order of `OBJECTIVES`, or None if it is infeasible."""

    status: Status
    objectives: tuple[float, ...] | None
    constraints: tuple[float, float]

    def document(self) -> dict[str, Any]:
        """Return the status and the objectives by name, for the exhibit."""
        values = {} if self.objectives is None else dict(zip(OBJECTIVES, self.objectives, strict=True))
        return {"status": self.status, **values}


@dataclass(frozen=True, slots=True)
class Shared:
    """The batches on which all compositions are evaluated.

    `parts[0]` is used for racing. A router has to be asked about `questions` and `inputs_WS`, in this order.
    `tokens_per_byte` is the mean over all of the text.
    """

    parts: tuple[AskedQuestions, ...]
    inputs_WS: Tensor
    targets_WS: Tensor
    tokens_per_byte: float

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions of all parts, in order."""
        return tuple(question for part in self.parts for question in part.questions)


def shared(
    questions: Sequence[Question],
    windows: Windows,
    tokenizer: Tokenizer,
    max_seq_len: int,
    *,
    num_questions: int,
    num_windows: int,
    racing_share: float,
    window_tokens: int = 0,
) -> Shared:
    """Choose equally many questions of each family, spread evenly over their order, and windows spread over the text.

    A family with too few questions contributes all of them. With a racing share of 1 there is one part and no race.
    `window_tokens` truncates the windows; 0 leaves them whole.

    Raises:
        ValueError: when a family has too few questions for two parts, or as `AskedQuestions`.
    """
    families = sorted({question.family for question in questions})
    parts: tuple[list[Question], list[Question]] = ([], [])
    for family in families:
        own = [question for question in questions if question.family == family]
        chosen = _spread(own, max(1, num_questions // len(families)))
        first = round(racing_share * len(chosen))
        if racing_share < 1 and not FEWEST_RACED <= first < len(chosen):
            raise ValueError(
                f"a race takes at least {FEWEST_RACED} questions of a family and leaves at least one, got {first} of "
                f"{len(chosen)} of {family!r}: raise search.questions, or set search.racing_share to 1"
            )
        raced = _spread(range(len(chosen)), first)
        for place, question in enumerate(chosen):
            parts[place not in raced].append(question)
    places = _spread(range(len(windows.inputs)), num_windows)
    cut = slice(None, window_tokens or None)
    return Shared(
        tuple(AskedQuestions(part, tokenizer, max_seq_len) for part in parts if part),
        windows.inputs[places][:, cut],
        windows.targets[places][:, cut],
        float((windows.targets >= 0).sum() / windows.num_bytes.sum()),
    )


@contextmanager
def recursing(model: Cognate, recursion: Mapping[str, float]) -> Iterator[Cognate]:
    """Yield the model with the recursion of a `Composition`; restore its own on exit."""
    before = model.config
    model.config = before.model_copy(update=dict(recursion))
    try:
        yield model
    finally:
        model.config = before


def from_layer(experts: Sequence[Expert], first_layer: int, num_prelude: int) -> list[Expert]:
    """Return the experts restricted to layers from `first_layer` on."""
    return [
        Expert(
            {name: code for name, code in expert.codes.items() if _layer(name, num_prelude) >= first_layer},
            {name: spread for name, spread in expert.spreads.items() if _layer(name, num_prelude) >= first_layer},
        )
        for expert in experts
    ]


@contextmanager
def composed(
    svf: SVFModel, experts: Sequence[Expert], composition: Composition, probabilities_QN: Tensor
) -> Iterator[Cognate]:
    """Yield the model as composed for a batch, given the router's probabilities per row; restore it on exit."""
    adapting = from_layer(experts, composition.first_layer, len(svf.model.prelude))
    multipliers = mixture(adapting, composition.weights(probabilities_QN)) if composition.adapts else None
    with recursing(svf.model, composition.recursion()), svf.using(multipliers) as model:
        yield model


class Evaluator:
    """Evaluates compositions. `latencies` and `known` cache measurements; a resumed search restores them."""

    def __init__(
        self,
        svf: SVFModel,
        experts: Sequence[Expert],
        given: Shared,
        probabilities_QN: Tensor,
        text_probabilities_WN: Tensor,
        *,
        router_bytes: int,
        latency_bound: float,
        latency_questions: int,
        latency_repeats: int,
        keep_activations: bool = True,
    ) -> None:
        """Prepare the evaluation. `keep_activations=False` recomputes every layer each time, with the same results.

        Raises:
            ValueError: when the router's probabilities do not match the shared batches.
        """
        asked = (len(given.questions), len(given.inputs_WS))
        if (len(probabilities_QN), len(text_probabilities_WN)) != asked:
            raise ValueError(
                f"the router must have judged the {asked[0]} shared questions and {asked[1]} windows, got "
                f"{len(probabilities_QN)} and {len(text_probabilities_WN)}: ask it about Shared.questions and inputs_WS"
            )
        self.svf, self.model, self.given = svf, svf.model, given
        self.experts, self.probabilities_QN = tuple(experts), probabilities_QN
        self.text_probabilities_WN = text_probabilities_WN
        self.router_bytes, self.latency_bound = router_bytes, latency_bound
        self.latency_repeats, self.keep_activations = latency_repeats, keep_activations
        self.space = Space.of(self.model.config, len(experts))
        prelude = len(self.model.prelude)
        self._experts = [from_layer(experts, first, prelude) for first in range(self.space.num_layers + 1)]
        self._families = sorted({question.family for question in given.questions})
        self._below: dict[tuple[int, int], tuple[list[Tensor], Roots | None]] = {}
        self._timed = _first_rows(given.parts[0], latency_questions)
        self.latencies: dict[Structure, Latency] = {}
        self.known: dict[Composition, Measured] = {}
        self._own = [self._expected(self.space.unadapted, part) for part in range(len(given.parts))]

    def evaluate(self, composition: Composition) -> Measured:
        """Return the evaluation of a composition, from the cache if it has been measured before."""
        if composition not in self.known:
            self.known[composition] = self.measure(composition)
        return self.known[composition]

    @torch.no_grad()
    def measure(self, composition: Composition) -> Measured:
        """Measure a composition, stopping early if it violates a constraint."""
        ratio = self.latency(composition.structure).ratio
        slow = ratio / self.latency_bound - 1
        if slow > 0:
            return Measured("too slow", None, (slow, 0.0))
        expected = [self._expected(composition, 0)]
        lag = self._lag(expected[0]) if len(self.given.parts) > 1 else 0.0
        if lag > 0:
            return Measured("raced out", None, (slow, lag))
        expected += [self._expected(composition, part) for part in range(1, len(self.given.parts))]
        loss = 1 - self._accuracy(torch.cat(expected))
        text = self._bits_per_byte(composition)
        return Measured("measured", (loss, ratio, float(self.num_bytes(composition)), text), (slow, lag))

    def num_bytes(self, composition: Composition) -> int:
        """Return the bytes that a composition adds to the model; 0 if it includes no expert."""
        if not composition.adapts:
            return 0
        adapting = zip(self._experts[composition.first_layer], composition.experts, strict=True)
        return self.router_bytes + sum(expert.num_bytes for expert, included in adapting if included)

    @torch.no_grad()
    def latency(self, structure: Structure) -> Latency:
        """Return the median seconds per question of a structure, which is timed only once.

        The unadapted model is timed alternately with it, so that a busy machine slows both. Recursion runs to its end.
        """
        if structure not in self.latencies:
            own = self.space.unadapted.structure
            times: list[tuple[float, float]] = []
            for repeat in range(-1, self.latency_repeats):  # repeat -1 is a warm-up
                one = self._seconds(own)
                two = one if structure == own else self._seconds(structure)
                if repeat >= 0:
                    times.append((two, one))
            self.latencies[structure] = Latency(*(statistics.median(t) for t in zip(*times, strict=True)))
        return self.latencies[structure]

    def families(self, composition: Composition) -> Mapping[str, float]:
        """Return the mean expected accuracy by family over all shared questions."""
        expected_Q = torch.cat([self._expected(composition, part) for part in range(len(self.given.parts))])
        return {family: float(expected_Q[self._of(family, self.given.questions)].mean()) for family in self._families}

    @torch.no_grad()
    def _expected(self, composition: Composition, part: int) -> Tensor:
        """Return the expected accuracy on each question of a part, the probability of its completion; (Q,) float64."""
        asked = self.given.parts[part]
        first = sum(len(earlier.questions) for earlier in self.given.parts[:part])
        multipliers = self._multipliers(composition, self.probabilities_QN[first : first + len(asked.questions)])
        kept = {places[0]: number for number, (places, _) in enumerate(asked.batches)}

        def predict(places: Sequence[int], inputs_BS: Tensor) -> Tensor:
            rows = None if multipliers is None else {name: m_QR[list(places)] for name, m_QR in multipliers.items()}
            return self._logits(composition, rows, inputs_BS, (part, kept[places[0]]))

        return asked.likelihoods(predict).expected_Q()

    def _bits_per_byte(self, composition: Composition) -> float:
        """Return nats per token / ln 2 * tokens per byte, which over all windows equals that of `measure_windows`."""
        multipliers = self._multipliers(composition, self.text_probabilities_WN)
        logits_WSV = self._logits(composition, multipliers, self.given.inputs_WS, (-1, 0))
        valid_WS = self.given.targets_WS >= 0
        nats = F.cross_entropy(logits_WSV[valid_WS], self.given.targets_WS[valid_WS], reduction="sum")
        return float(nats.double() / valid_WS.sum()) / math.log(2) * self.given.tokens_per_byte

    def _multipliers(self, composition: Composition, probabilities_QN: Tensor) -> Multipliers | None:
        if not composition.adapts:
            return None
        return mixture(self._experts[composition.first_layer], composition.weights(probabilities_QN))

    def _logits(
        self, composition: Composition, multipliers: Multipliers | None, inputs_BS: Tensor, key: tuple[int, int]
    ) -> Tensor:
        """Return the logits (rows, positions, vocab) of a shared batch, computed from the first adapted layer on."""
        layer = min(composition.first_layer, len(self.model.prelude))
        with recursing(self.model, composition.recursion()), self.svf.using(multipliers) as model:
            if not self.keep_activations:
                return cast(Tensor, model(inputs_BS).logits)
            kept, roots = self._kept(inputs_BS, key)
            x_BSD = kept[layer]
            for block in model.prelude[layer:]:
                x_BSD = block(x_BSD, roots=roots)[0]
            if layer < len(model.prelude):
                x_BSD = model.prelude_norm(x_BSD)
            return model.predict(x_BSD).logits

    def _kept(self, inputs_BS: Tensor, key: tuple[int, int]) -> tuple[list[Tensor], Roots | None]:
        """Return the unadapted inputs of every prelude block and of the first core block, and the prelude's roots,
        which no expert changes, cached per shared batch."""
        if key not in self._below:
            with self.svf.using(None) as model:
                xs, roots = [model.embed(inputs_BS)], None
                for block in model.prelude:
                    x_BSD, record = block(xs[-1], roots=roots)
                    roots = roots or Roots.of(xs[0], record.pair)
                    xs.append(x_BSD)
                xs[-1] = model.prelude_norm(xs[-1])
            self._below[key] = xs, roots
        return self._below[key]

    def _of(self, family: str, questions: Sequence[Question]) -> list[int]:
        return [place for place, question in enumerate(questions) if question.family == family]

    def _accuracy(self, expected_Q: Tensor) -> float:
        means = [expected_Q[self._of(family, self.given.questions)].mean() for family in self._families]
        return float(torch.stack(means).mean())

    def _lag(self, expected_Q: Tensor) -> float:
        """Return how far the upper bound of the paired 99 % CI lies below the unadapted model's accuracy.

        A composition with a value of at most 0 stays in the race. Families are strata: the variance of the mean over
        families is the sum of theirs / F^2.
        """
        means, variances = [], []
        for family in self._families:
            places = self._of(family, self.given.parts[0].questions)
            difference_q = (expected_Q - self._own[0])[places]
            means.append(difference_q.mean())
            variances.append(difference_q.var() / len(places))
        error = torch.stack(variances).sum().sqrt() / len(means)
        return float(-(torch.stack(means).mean() + Z99 * error + NEGLIGIBLE))

    def _seconds(self, structure: Structure) -> float:
        """Time the two passes, per question: the unadapted model reads the prompt, the adapted one reads everything."""
        inputs_BS, prompt = self._timed
        own = self.space.unadapted.recursion() | {"halt_threshold": NEVER_STOPS}
        multipliers = None
        started = time.perf_counter()
        if structure.first_layer < self.space.num_layers:
            with recursing(self.model, own), self.svf.using(None) as model:
                model(inputs_BS[:, :prompt])
            even_BK = torch.full((len(inputs_BS), self.space.num_experts), 1 / self.space.num_experts)
            multipliers = mixture(self._experts[structure.first_layer], even_BK)
        asked = own | dict(zip(structure._fields[1:], structure[1:], strict=True))
        with recursing(self.model, asked), self.svf.using(multipliers) as model:
            model(inputs_BS)
        return (time.perf_counter() - started) / len(inputs_BS)


def _spread(items: Sequence[Any], number: int) -> list[Any]:
    """Return `number` items, spread evenly over their order, or all if there are fewer."""
    number = min(number, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]


def _layer(name: str, num_prelude: int) -> int:
    stack, number, _ = name.split(".", 2)
    return int(number) + (num_prelude if stack == "core" else 0)


def _first_rows(asked: AskedQuestions, number: int) -> tuple[Tensor, int]:
    """Return the rows of some questions with their completions, and the length of the longest prompt among them."""
    rows = asked.batches[0][1]
    places = _spread(range(len(rows.inputs_BS)), number)
    prompts = rows.mask_BS[places].int().argmax(1) + 1
    return rows.inputs_BS[places], int(prompts.max())
