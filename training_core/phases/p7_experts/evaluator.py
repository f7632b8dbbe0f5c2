"""What a composition of experts costs and gives, measured on batches that all compositions share.

Four objectives, all minimised, of a composition that is feasible:

    loss      1 - mean over families of the mean expected accuracy of their questions (`questions.likelihood`)
    latency   seconds for a question in two passes / seconds of the unadapted model's one pass   (`latency`)
    bytes     what its experts take in the layers that they adapt, and the router
    text      bits per byte on windows of text, which are routed as questions are

and two constraints, each fulfilled where it is not above 0:

    latency / bound - 1                      one that breaks it is not measured further: "too slow"
    -(mean difference + z standard errors)   to the unadapted model's accuracy on a first part of the questions,
                                             paired by question within families, z of a 99 % interval: "raced out"

Numbers of a composition that is not feasible are not reported and stand in no front.

Cheap because: what lies below the first adapted layer is the unadapted model's and is computed once for all batches;
every question has its own mixture in one batch; a composition is measured once; a bad one on few questions.

**Does not cover** writing token by token: latency is that of reading questions and their completions in parallel form,
and a threshold of halting saves nothing there, as a step is run while any position of a batch wants it.

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
from training_core.nn.cognate import Cognate
from training_core.nn.svf import Expert, Multipliers, SVFModel, mixture
from training_core.phases.p7_experts.genome import NEVER_STOPS, Composition, Space, Structure
from training_core.tasks.questions.likelihood import AskedQuestions
from training_core.tasks.questions.question import Question

Z99 = 2.5758293035489004
NEGLIGIBLE = 1e-5  # of accuracy: a fall below that is rounding, however steady
FEWEST_RACED = 2  # questions of a family in a race, so that there is a variance
OBJECTIVES = ("loss", "latency", "bytes", "bits_per_byte")
Status = Literal["measured", "too slow", "raced out"]


class Latency(NamedTuple):
    """Median seconds for a question: in two passes, and of the unadapted model in one, taken in turn."""

    seconds: float
    unadapted_seconds: float

    @property
    def ratio(self) -> float:
        """How much longer it takes."""
        return self.seconds / self.unadapted_seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out about a composition: objectives as `OBJECTIVES`, None where it is not feasible."""

    status: Status
    objectives: tuple[float, ...] | None
    constraints: tuple[float, float]

    def document(self) -> dict[str, Any]:
        """As part of an exhibit."""
        values = {} if self.objectives is None else dict(zip(OBJECTIVES, self.objectives, strict=True))
        return {"status": self.status, **values}


@dataclass(frozen=True, slots=True)
class Shared:
    """What all compositions are measured on. The questions are raced on `parts[0]`; a router is asked about
    `questions` and `inputs_WS`, in this order. `tokens_per_byte` is that of all the text."""

    parts: tuple[AskedQuestions, ...]
    inputs_WS: Tensor
    targets_WS: Tensor
    tokens_per_byte: float

    @property
    def questions(self) -> tuple[Question, ...]:
        """Those of all parts."""
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
    """Choose questions, alike for all families and spread over their order, and windows spread over the text.

    A family that has fewer gives all it has. With a racing share of 1 there is one part and no race. `window_tokens`
    cuts the windows short; 0 leaves them as they are.

    Raises:
        ValueError: when a family has too few questions for two parts, or as `AskedQuestions`.
    """
    families = sorted({question.family for question in questions})
    parts: tuple[list[Question], list[Question]] = ([], [])
    for family in families:
        its = [question for question in questions if question.family == family]
        chosen = _spread(its, max(1, num_questions // len(families)))
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
    """The model with another `Composition.recursion`; behind it, with its own."""
    before = model.config
    model.config = before.model_copy(update=dict(recursion))
    try:
        yield model
    finally:
        model.config = before


def from_layer(experts: Sequence[Expert], first_layer: int, num_prelude: int) -> list[Expert]:
    """The experts without what they say about layers below `first_layer`."""
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
    """The model as a composition has it for a batch whose rows a router has judged; behind it, as it was."""
    adapting = from_layer(experts, composition.first_layer, len(svf.model.prelude))
    multipliers = mixture(adapting, composition.weights(probabilities_QN)) if composition.adapts else None
    with recursing(svf.model, composition.recursion()), svf.using(multipliers) as model:
        yield model


class Evaluator:
    """Measures compositions. `latencies` and `known` hold what was measured before: who fills them goes on with the
    same numbers."""

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
        """`keep_activations`: False computes every layer every time; the numbers are the same.

        Raises:
            ValueError: when the router's answers are not those of the shared batches.
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
        self._below: dict[tuple[int, int], list[Tensor]] = {}
        self._timed = _first_rows(given.parts[0], latency_questions)
        self.latencies: dict[Structure, Latency] = {}
        self.known: dict[Composition, Measured] = {}
        self._own = [self._expected(self.space.unadapted, part) for part in range(len(given.parts))]

    def evaluate(self, composition: Composition) -> Measured:
        """What is known about a composition, measured now where it is not."""
        if composition not in self.known:
            self.known[composition] = self.measure(composition)
        return self.known[composition]

    @torch.no_grad()
    def measure(self, composition: Composition) -> Measured:
        """Measure a composition, in the order of the module's text."""
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
        """What a composition takes beyond the model: nothing where no expert is in it."""
        if not composition.adapts:
            return 0
        adapting = zip(self._experts[composition.first_layer], composition.experts, strict=True)
        return self.router_bytes + sum(expert.num_bytes for expert, there in adapting if there)

    @torch.no_grad()
    def latency(self, structure: Structure) -> Latency:
        """Median seconds for a question, measured once for a structure. The unadapted model is timed in turn with
        it, so that a machine that is busy slows both. Recursion is run to its end."""
        if structure not in self.latencies:
            own = self.space.unadapted.structure
            times: list[tuple[float, float]] = []
            for repeat in range(-1, self.latency_repeats):  # the first is not counted
                one = self._seconds(own)
                two = one if structure == own else self._seconds(structure)
                if repeat >= 0:
                    times.append((two, one))
            self.latencies[structure] = Latency(*(statistics.median(t) for t in zip(*times, strict=True)))
        return self.latencies[structure]

    def families(self, composition: Composition) -> Mapping[str, float]:
        """Mean expected accuracy by family, of all shared questions."""
        expected_Q = torch.cat([self._expected(composition, part) for part in range(len(self.given.parts))])
        return {family: float(expected_Q[self._of(family, self.given.questions)].mean()) for family in self._families}

    @torch.no_grad()
    def _expected(self, composition: Composition, part: int) -> Tensor:
        """Probability that an attempt writes the completion, of each question of a part; (Q,) float64."""
        asked = self.given.parts[part]
        first = sum(len(earlier.questions) for earlier in self.given.parts[:part])
        multipliers = self._multipliers(composition, self.probabilities_QN[first : first + len(asked.questions)])
        kept = {places[0]: number for number, (places, _) in enumerate(asked.batches)}

        def predict(places: Sequence[int], inputs_BS: Tensor) -> Tensor:
            rows = None if multipliers is None else {name: m_QR[list(places)] for name, m_QR in multipliers.items()}
            return self._logits(composition, rows, inputs_BS, (part, kept[places[0]]))

        return asked.likelihoods(predict).expected_Q()

    def _bits_per_byte(self, composition: Composition) -> float:
        """Nats of a token / ln 2 * tokens of a byte: over all windows it is that of `measure_windows`."""
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
        """Logits (rows, positions, vocab) of a shared batch, from its first adapted layer on."""
        layer = min(composition.first_layer, len(self.model.prelude))
        with recursing(self.model, composition.recursion()), self.svf.using(multipliers) as model:
            if not self.keep_activations:
                return cast(Tensor, model(inputs_BS).logits)
            x_BSD = self._kept(inputs_BS, key)[layer]
            for block in model.prelude[layer:]:
                x_BSD = block(x_BSD)[0]
            if layer < len(model.prelude):
                x_BSD = model.prelude_norm(x_BSD)
            return model.predict(x_BSD).logits

    def _kept(self, inputs_BS: Tensor, key: tuple[int, int]) -> list[Tensor]:
        """What the unadapted model gives every prelude block, and the first core block, for a shared batch."""
        if key not in self._below:
            with self.svf.using(None) as model:
                xs = [model.embed(inputs_BS)]
                for block in model.prelude:
                    xs.append(block(xs[-1])[0])
                xs[-1] = model.prelude_norm(xs[-1])
            self._below[key] = xs
        return self._below[key]

    def _of(self, family: str, questions: Sequence[Question]) -> list[int]:
        return [place for place, question in enumerate(questions) if question.family == family]

    def _accuracy(self, expected_Q: Tensor) -> float:
        means = [expected_Q[self._of(family, self.given.questions)].mean() for family in self._families]
        return float(torch.stack(means).mean())

    def _lag(self, expected_Q: Tensor) -> float:
        """How far even the high end of the paired 99 % interval lies below the unadapted model; not above 0 where
        the composition stays in. Families are strata: the variance of their mean is theirs / F^2."""
        means, variances = [], []
        for family in self._families:
            places = self._of(family, self.given.parts[0].questions)
            difference_q = (expected_Q - self._own[0])[places]
            means.append(difference_q.mean())
            variances.append(difference_q.var() / len(places))
        error = torch.stack(variances).sum().sqrt() / len(means)
        return float(-(torch.stack(means).mean() + Z99 * error + NEGLIGIBLE))

    def _seconds(self, structure: Structure) -> float:
        """Of one question: the unadapted model reads it, the router weighs, the adapted one reads it to its end."""
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
    """`number` items, evenly over their order; all where there are fewer."""
    number = min(number, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]


def _layer(name: str, num_prelude: int) -> int:
    stack, number, _ = name.split(".", 2)
    return int(number) + (num_prelude if stack == "core" else 0)


def _first_rows(asked: AskedQuestions, number: int) -> tuple[Tensor, int]:
    """Rows of some questions with their completions, and the most positions that a question alone has there."""
    rows = asked.batches[0][1]
    places = _spread(range(len(rows.inputs_BS)), number)
    prompts = rows.mask_BS[places].int().argmax(1) + 1
    return rows.inputs_BS[places], int(prompts.max())
