"""Final evaluation of a model with experts, on questions and text that no choice was based on.

    none        the model without experts
    single      for every question, the single expert that was best on all validation questions
    classifier  the likeliest expert of the linear router, or none
    prompt      the likeliest expert when the model is asked in words
    few shots   coefficients found on a few solved examples of the family's group
    oracle      the expert of the question's family: the upper limit of routing
    low rank    the LoRA baseline of equal size, by the question's family
    composed    the composition chosen by the search, with the linear router: the stored model

Shape legend: Q questions, K experts, N = K + 1 answers of a router, W windows, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from training_core.evaluation.intervals import rate
from training_core.evaluation.windows import Windows
from training_core.nn.svf import Expert, SVFModel, mixture
from training_core.phases.p7_experts.discovery import Discovery
from training_core.phases.p7_experts.evaluator import Latency, composed
from training_core.phases.p7_experts.genome import Composition, Structure
from training_core.phases.p7_experts.routing_measurement import Routing, measure_routing
from training_core.phases.p7_experts.train_experts import TrainedExpert
from training_core.phases.p7_experts.two_pass import Cost, TwoPass
from training_core.record import Estimate
from training_core.svf.expert_accuracy import PerExpertAccuracy, accuracy, family_drops, gain
from training_core.svf.routing import ClassifierRouter, PromptRouter
from training_core.tasks.questions.likelihood import AskedQuestions

COST_QUESTIONS = 32


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """Expected accuracies (questions,) for each way of answering, and the statistics derived from them.

    `single` is the number of the best single expert, from 1. `text` holds the ratio of bits per byte on test text,
    composed over none, and the values of none and of composed.
    """

    alone: PerExpertAccuracy
    expected: Mapping[str, Tensor]
    single: int
    drops: Mapping[str, Estimate]
    routing: tuple[Routing, ...]
    cost: Cost
    latency: Latency
    text: tuple[Estimate, float, float] = field(default=(Estimate(1.0, 1.0, 1.0), math.nan, math.nan))

    def of(self, name: str) -> Estimate:
        """Return the macro-averaged accuracy (over families) of one way of answering."""
        return accuracy(self.expected[name], self.alone.questions)

    def over(self, name: str, other: str) -> Estimate:
        """Return the macro-averaged accuracy gain of one way of answering over another."""
        return gain(self.expected[name], self.expected[other], self.alone.questions)

    def metrics(self) -> dict[str, float]:
        """Return accuracies, gains, drops, routing and costs as the flat metrics of a bundle."""
        metrics: dict[str, float] = {}
        for name in self.expected:
            metrics |= self.of(name).metrics(f"accuracy_{name.replace(' ', '_')}")
            if name != "none":
                metrics |= self.over(name, "none").metrics(f"{name.replace(' ', '_')}_over_none")
        metrics |= self.over("composed", "single").metrics("routed_over_single")
        metrics |= self.over("oracle", "low rank").metrics("experts_over_low_rank")
        for family, drop in self.drops.items():
            metrics |= drop.metrics(f"family_{family}_drop")
        for routing in self.routing:
            metrics |= routing.accuracy.metrics(f"router_{routing.name}_accuracy")
            metrics[f"router_{routing.name}_entropy_bits"] = routing.entropy_bits
        ratio, before, after = self.text
        return metrics | {
            "worst_family_drop_low": max(drop.low for drop in self.drops.values()),
            "latency_over_one_pass": self.latency.ratio,
            "first_pass_over_one_pass": self.cost.first_s / self.cost.plain_s,
            "second_pass_over_one_pass": self.cost.second_s / self.cost.plain_s,
            **ratio.metrics("routed_bits_per_byte_ratio"),
            "text_bits_per_byte_before": before,
            "text_bits_per_byte_routed": after,
        }


def measure_answers(
    svf: SVFModel,
    taught: Sequence[TrainedExpert],
    discovery: Discovery,
    router: ClassifierRouter,
    prompt: PromptRouter,
    composition: Composition,
    coefficients: Sequence[Tensor],
    chosen_on: PerExpertAccuracy,
    asked: AskedQuestions,
    latencies: Mapping[Structure, Latency],
) -> AnswerComparison:
    """Evaluate all ways of answering on the test questions `asked`.

    `coefficients` are those of the few-shot search, (experts,) for each group of families. `chosen_on` holds the
    accuracies on validation questions, by which the best single expert is chosen.
    """
    experts = [trained.expert for trained in taught]
    alone = PerExpertAccuracy.measure(svf, experts, asked)
    single = chosen_on.best_single()
    with svf.using(None):
        probabilities = {each.name: each.probabilities(asked.questions) for each in (router, prompt)}
    right_Q = torch.tensor([discovery.expert_of.get(question.family, 0) for question in asked.questions])
    expected = {
        "none": alone.none_Q,
        "single": alone.expected_KQ[single],
        "low rank": _by_rival(alone, taught, right_Q),
        "oracle": alone.by_oracle(discovery.expert_of),
        **{name: alone.chosen(p_QN.argmax(1)) for name, p_QN in probabilities.items()},
        "few shots": _by_few_shots(svf, experts, alone, coefficients, right_Q, asked),
        "composed": expected_by(svf, experts, composition, router, asked),
    }
    two_pass = TwoPass(svf, experts, router)
    timed = AskedQuestions(asked.questions[:COST_QUESTIONS], router.tokenizer, svf.model.config.max_seq_len)
    return AnswerComparison(
        alone,
        expected,
        single,
        family_drops(alone.none_Q, expected["composed"], asked.questions),
        tuple(measure_routing(name, p_QN, right_Q) for name, p_QN in probabilities.items()),
        two_pass.cost(timed),
        latencies[composition.structure],
    )


def expected_by(
    svf: SVFModel,
    experts: Sequence[Expert],
    composition: Composition,
    router: ClassifierRouter,
    asked: AskedQuestions,
) -> Tensor:
    """Return the expected accuracy (questions,) of a composition with a router."""
    device = next(svf.model.parameters()).device
    with svf.using(None):
        probabilities_QN = router.probabilities(asked.questions)

    def predict(places: Sequence[int], inputs_BS: Tensor) -> Tensor:
        with composed(svf, experts, composition, probabilities_QN[list(places)]) as model:
            return cast(Tensor, model(inputs_BS.to(device)).logits)

    return asked.likelihoods(predict).expected_Q()


@torch.no_grad()
def measure_text(
    svf: SVFModel,
    experts: Sequence[Expert],
    composition: Composition,
    router: ClassifierRouter,
    windows: Windows,
    routed_tokens: int,
    batch_size: int,
) -> tuple[Estimate, float, float]:
    """Compare bits per byte of a composition with those of the model without experts, on the same tokens.

    Each window is routed by its first `routed_tokens`, and only the tokens after them count. Returns the ratio with a
    95 % CI by bootstrap over windows, and the values without and with experts.
    """
    device = next(svf.model.parameters()).device
    nats: dict[bool, list[Tensor]] = {True: [], False: []}
    for start in range(0, len(windows.inputs), batch_size):
        inputs_WS = windows.inputs[start : start + batch_size]
        targets_WS = windows.targets[start : start + batch_size].clone()
        targets_WS[:, :routed_tokens] = -1
        with svf.using(None):
            probabilities_WN = router.of_prompts(inputs_WS[:, :routed_tokens].tolist())
        with svf.using(None) as model:
            nats[False].append(_nats(model(inputs_WS.to(device)).logits.cpu(), targets_WS))
        with composed(svf, experts, composition, probabilities_WN) as model:
            nats[True].append(_nats(model(inputs_WS.to(device)).logits.cpu(), targets_WS))
    before_W, after_W = torch.cat(nats[False]), torch.cat(nats[True])
    valid = windows.targets >= 0
    num_bytes = float(windows.num_bytes.sum()) * float(valid[:, routed_tokens:].sum() / valid.sum())  # estimated
    before, after = (float(nats_W.sum()) / math.log(2) / num_bytes for nats_W in (before_W, after_W))
    return rate(after_W, before_W), before, after


def _nats(logits_WSV: Tensor, targets_WS: Tensor) -> Tensor:
    """Return the total loss in nats of each window, (windows,) float64."""
    loss_WS = F.cross_entropy(logits_WSV.float().transpose(1, 2), targets_WS.clamp_min(0), reduction="none") * (
        targets_WS >= 0
    )
    return loss_WS.double().sum(1)


def _by_rival(alone: PerExpertAccuracy, taught: Sequence[TrainedExpert], right_Q: Tensor) -> Tensor:
    """Return the expected accuracy with the LoRA baseline of each question's family, or without one if it has none."""
    expected_Q = alone.none_Q.clone()
    for number, trained in enumerate(taught, 1):
        expected_Q[right_Q == number] = trained.rival_Q
    return expected_Q


def _by_few_shots(
    svf: SVFModel,
    experts: Sequence[Expert],
    alone: PerExpertAccuracy,
    coefficients: Sequence[Tensor],
    right_Q: Tensor,
    asked: AskedQuestions,
) -> Tensor:
    """Return the expected accuracy with the coefficients of each question's group, without experts if it has none."""
    device = next(svf.model.parameters()).device
    weights_QK = torch.stack([torch.zeros(len(experts)), *coefficients])[right_Q]
    multipliers = mixture(experts, weights_QK)

    def predict(places: Sequence[int], inputs_BS: Tensor) -> Tensor:
        with svf.using({name: m_QR[list(places)] for name, m_QR in multipliers.items()}) as model:
            return cast(Tensor, model(inputs_BS.to(device)).logits)

    return torch.where(right_Q > 0, asked.likelihoods(predict).expected_Q(), alone.none_Q)
