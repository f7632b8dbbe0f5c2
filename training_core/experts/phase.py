"""Phase 7, from a baked model to what is stored: find experts, teach them, route, search compositions, measure.

    profile -> N experts and their families -> an expert each -> a router -> a front of compositions -> the knee of it

The model itself stays as it is, bit for bit: experts and router stand beside it. Choices are made on validation data:
the better way to learn each expert, the best single expert, the composition. One that makes a family worse beyond
chance on validation questions is not used; where none is left the model answers without experts, and the report says
why. What is printed was measured on test questions and test text.

**Does not cover**: experts of text. Text is routed as questions are, by its first tokens, so that what an expert would
do to it is measured and can be refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.batches import MixConfig, TrainingData
from training_core.evaluation.held_out import Suite
from training_core.experts.answers import Alone, family_drops, of_each_family
from training_core.experts.bundles import PROBED_ROWS, PROBED_TOKENS, Experts
from training_core.experts.config import ExpertsConfig
from training_core.experts.discovery import Discovery, discover
from training_core.experts.evaluator import Evaluator, Shared, shared
from training_core.experts.few_shot import few_shot_weights
from training_core.experts.genome import Composition
from training_core.experts.measurement import Answers, expected_by, measure_answers, measure_text
from training_core.experts.profile import measure_profile
from training_core.experts.routing import ClassifierRouter, PromptRouter
from training_core.experts.search import SearchResult, knee_of, search
from training_core.experts.shown import exhibit
from training_core.experts.singular import Scalable
from training_core.experts.teaching import Taught, Teacher
from training_core.models.cognate import Cognate
from training_core.phases import Product
from training_core.quantization.packing import round_to_half_
from training_core.quantization.training import TernarySettings, ternary_product
from training_core.questions.bank import QuestionBank
from training_core.questions.fingerprint import fingerprint_of
from training_core.questions.likelihood import AskedQuestions
from training_core.questions.question import Question
from training_core.questions.tools import ToolBox
from training_core.training.device import best_device
from training_core.training.loop import step_generator
from training_core.training.reporting import Reporter
from training_core.training.stages import Stages

TEXT_ONLY = MixConfig(text_share=1.0, arithmetic_share=0.0, logic_share=0.0, needle_share=0.0)
MOST_FALL = 0.01  # of a family's expected accuracy on validation questions; a composition beyond is not used
PROFILE_STEP, ROUTER_STEP, FEW_SHOT_STEP = -1_000_001, -1_000_002, -1_000_100  # of `step_generator`


def make_experts(
    parent: Cognate,
    settings: TernarySettings,
    config: ExpertsConfig,
    data: TrainingData,
    bank: QuestionBank,
    tools: ToolBox,
    suite: Suite,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> Product:
    """Find, teach, route and compose experts for a straight-through ternary `parent`, and measure what came of it.

    A run that was killed goes on from `checkpoint`: with the expert that it had not finished, or behind the last
    generation of the search.

    Raises:
        ValueError: when no questions are easy enough (`hardest_level`), those of a family are too few for a race
            (`search_racing_share`), or the windows of text are no longer than `routed_tokens`.
    """
    parent.to(best_device()).eval()
    round_to_half_(parent)
    fingerprint = fingerprint_of(parent, config, bank, suite, data, tools)
    run = _Run(parent, config, data, bank, tools, suite, reporter, checkpoint, fingerprint)
    discovery = run.discover()
    taught = [run.teacher.teach(profile) for profile in discovery.experts]
    router = run.fit_router(discovery)
    found = run.search(taught, router)
    composition, why = run.choose(found, taught, router)
    answers = run.measure(discovery, taught, router, found, composition)
    experts = Experts(
        run.scalable,
        tuple(its.expert for its in taught),
        tuple(profile.name for profile in discovery.experts),
        router.head,
        composition,
        config.routed_tokens,
    )
    metrics = _metrics(discovery, taught, router, found, answers)
    metrics |= {"handed_on": float(not composition.adapts), "experts_in_use": float(sum(composition.experts))}
    shown = exhibit(discovery, taught, found, composition, answers, run.scalable, why)
    product = ternary_product(parent.cpu(), settings, data.tokenizer_json, metrics=metrics, exhibits={"experts": shown})
    document = experts.document([profile.families for profile in discovery.experts])
    return replace(
        product,
        model_config={**product.model_config, "experts": document},
        tensors={**(product.tensors or {}), **experts.tensors(suite.test.inputs[:PROBED_ROWS, :PROBED_TOKENS])},
    )


class _Run:
    """What the stages work on, and the stages."""

    def __init__(
        self,
        parent: Cognate,
        config: ExpertsConfig,
        data: TrainingData,
        bank: QuestionBank,
        tools: ToolBox,
        suite: Suite,
        reporter: Reporter,
        checkpoint: Path | None,
        fingerprint: str,
    ) -> None:
        self.config, self.data, self.suite = config, data, suite
        self.bank = bank = _up_to(bank, config.hardest_level)
        self.reporter, self.checkpoint, self.fingerprint = reporter, checkpoint, fingerprint
        self.tokenizer = Tokenizer.from_str(data.tokenizer_json)
        self.stages = Stages(checkpoint, fingerprint, reporter)
        self.shared = self._shared(parent)  # refused before anything is trained
        self.scalable = Scalable(parent)
        self.model = self.scalable.model
        self.teacher = Teacher(self.scalable, config, bank, self.tokenizer, tools, self.stages, reporter, checkpoint)

    def discover(self) -> Discovery:
        """How many experts, and for which families: seconds, and the same every time."""
        self.reporter.progress(0, 1, "the model's own profile")
        profile = measure_profile(self.scalable, self.asked(self.bank.train, self.config.profile_questions))
        generator = step_generator(self.config.seed, PROFILE_STEP)
        found = discover(profile, generator, self.config.profile_resamples, self.config.most_experts)
        self.reporter.progress(1, 1, f"the model's own profile: {found.num_experts} experts")
        return found

    def fit_router(self, discovery: Discovery) -> ClassifierRouter:
        """The first pass: a linear head, which learns from training questions and training text."""
        config = self.config
        generator = step_generator(config.seed, ROUTER_STEP)
        text = self.data.batch(TEXT_ONLY, config.router_texts, config.routed_tokens, generator).tolist()
        questions = of_each_family(self.bank.train, config.router_questions)
        return ClassifierRouter.fit(self.model, self.tokenizer, questions, discovery.expert_of, text)

    def search(self, taught: list[Taught], router: ClassifierRouter) -> SearchResult:
        """The front of compositions, and its knee."""
        config = self.config
        evaluator = Evaluator(
            self.scalable,
            [its.expert for its in taught],
            self.shared,
            router.probabilities(self.shared.questions),
            router.of_prompts(self.shared.inputs_WS[:, : config.routed_tokens].tolist()),
            router_bytes=router.head.num_bytes,
            latency_bound=config.search_latency_bound,
            latency_questions=config.search_latency_questions,
            latency_repeats=config.search_latency_repeats,
        )
        path = None if self.checkpoint is None else self.checkpoint / "search.safetensors"
        found = search(evaluator, config, self.reporter, path, self.fingerprint)
        self.reporter.figure("search", found.figure())
        return found

    def choose(self, found: SearchResult, taught: list[Taught], router: ClassifierRouter) -> tuple[Composition, str]:
        """The knee of the points that make no family worse on validation questions, beyond chance or by more than a
        point; why it is the model without experts, empty where it is not."""
        left, refused = list(found.front), ""
        while (point := knee_of(left, found.unadapted))[0].adapts:
            harm = self.stages.keep(f"harm {len(left)}", partial(self._harm, point[0], taught, router))
            if harm["low"] <= 0 and harm["fall"] <= MOST_FALL:
                return point[0], ""
            left.remove(point)
            fall = f"would fall by {harm['fall']:.4f}, and one family by {harm['low']:.4f} at least"
            refused = refused or f"at the knee the family {harm['family']} {fall}"
        reason = refused or "none of the front gains in accuracy"
        return found.unadapted[0], f"no composition is better and does no harm on validation questions: {reason}"

    def _harm(self, composition: Composition, taught: list[Taught], router: ClassifierRouter) -> Mapping[str, Any]:
        """The largest fall of a family on validation questions, and the highest low end of any."""
        asked = self.asked(self.bank.validation, self.config.chosen_questions)
        none_Q = Alone.measure(self.scalable, [], asked).none_Q
        after_Q = expected_by(self.scalable, [its.expert for its in taught], composition, router, asked)
        drops = family_drops(none_Q, after_Q, asked.questions)
        worst = max(drops, key=lambda family: drops[family].value)
        low = max(drop.low for drop in drops.values())
        return {"family": worst, "fall": drops[worst].value, "low": low}

    def measure(
        self,
        discovery: Discovery,
        taught: list[Taught],
        router: ClassifierRouter,
        found: SearchResult,
        composition: Composition,
    ) -> Answers:
        """Everything that is said of the stored model, on test questions and test text."""
        config = self.config
        experts = [its.expert for its in taught]
        chosen_on = Alone.measure(self.scalable, experts, self.asked(self.bank.validation, config.chosen_questions))
        asked = self.asked(self.bank.test, config.measured_questions)
        prompt = PromptRouter(self.model, self.tokenizer, [profile.name for profile in discovery.experts])
        coefficients = [self._few_shot(profile.number, profile.families, taught) for profile in discovery.experts]
        answers = measure_answers(
            self.scalable, taught, discovery, router, prompt, composition, coefficients, chosen_on, asked,
            found.latencies,
        )  # fmt: skip
        text = measure_text(
            self.scalable, experts, composition, router, self.suite.test, config.routed_tokens,
            self.suite.config.batch_size,
        )  # fmt: skip
        return replace(answers, text=text)

    def asked(self, questions: Sequence[Question], number: int) -> AskedQuestions:
        """So many questions of every family, encoded once."""
        return AskedQuestions(of_each_family(questions, number), self.tokenizer, self.model.config.max_seq_len)

    def _few_shot(self, number: int, families: tuple[str, ...], taught: list[Taught]) -> Tensor:
        """Coefficients (experts,) for one group of families, from a few solved validation examples."""
        its = [question for question in self.bank.validation if question.family in families]
        shots = self.asked(its, max(1, self.config.few_shot_shots // len(families)))
        generator = step_generator(self.config.seed, FEW_SHOT_STEP - number)
        experts = [one.expert for one in taught]

        def climb() -> Mapping[str, Any]:
            return few_shot_weights(self.scalable, experts, shots, self.config, generator).document()

        return torch.tensor(self.stages.keep(f"few shots {number}", climb)["weights"])

    def _shared(self, model: Cognate) -> Shared:
        config = self.config
        found = shared(
            self.bank.validation,
            self.suite.validation,
            self.tokenizer,
            model.config.max_seq_len,
            num_questions=config.search_questions,
            num_windows=config.search_windows,
            racing_share=config.search_racing_share,
            window_tokens=config.search_window_tokens,
        )
        targets_WS = found.targets_WS.clone()
        targets_WS[:, : config.routed_tokens] = -1  # a text is routed by its beginning, which is not measured
        if not bool((targets_WS >= 0).any()):
            raise ValueError(
                f"windows of {targets_WS.shape[1]} tokens have nothing behind the {config.routed_tokens} by which they "
                "are routed: lower routed_tokens, or raise search_window_tokens"
            )
        return replace(found, targets_WS=targets_WS)


def _up_to(bank: QuestionBank, level: int) -> QuestionBank:
    """The questions up to a level: of harder ones a small model has nothing to tell its experts apart by."""
    train, validation, test = (
        [question for question in part if question.level <= level] for part in (bank.train, bank.validation, bank.test)
    )
    if not train or not validation or not test:
        raise ValueError(f"there are no questions up to level {level} in every split: raise hardest_level")
    return replace(bank, train=train, validation=validation, test=test)


def _metrics(
    discovery: Discovery, taught: list[Taught], router: ClassifierRouter, found: SearchResult, answers: Answers
) -> dict[str, float]:
    expert = taught[0].expert
    differences = found.differences()
    metrics = {
        "num_experts": float(discovery.num_experts),
        "experts_wanted": float(discovery.wanted),
        "expert_number_stability": discovery.same_number,
        "expert_parameters": float(expert.num_parameters),
        "expert_bytes": float(expert.num_bytes),
        "router_bytes": float(router.head.num_bytes),
        "experts_by_reward": float(sum(its.method == "reward" for its in taught)),
        "hypervolume_over_random": sum(differences) / len(differences),
        "hypervolume_over_random_low": min(differences),
    }
    for profile, its in zip(discovery.experts, taught, strict=True):
        for method, gain in its.gains.items():
            metrics |= gain.metrics(f"expert_{profile.number}_{method.replace(' ', '_')}_gain")
    return metrics | found.metrics() | answers.metrics()
