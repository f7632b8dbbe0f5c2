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
from typing import Any

import torch
from torch import Tensor

from training_core.data.batches import TEXT_ONLY
from training_core.evaluation.harm import EXPERTS
from training_core.formats.loading import load_latents, ternary_settings
from training_core.formats.ternary_packing import round_to_half_, ternary_product
from training_core.nn.cognate import Cognate
from training_core.nn.svf import SVFModel
from training_core.nn.ternary_cognate import TernarySettings
from training_core.phase import Phase
from training_core.phases.p7_experts.bundles import PROBED_ROWS, PROBED_TOKENS, Experts
from training_core.phases.p7_experts.config import ExpertsConfig
from training_core.phases.p7_experts.discovery import Discovery, discover
from training_core.phases.p7_experts.evaluator import Evaluator, Shared, shared
from training_core.phases.p7_experts.few_shot import few_shot_weights
from training_core.phases.p7_experts.gates import GATES
from training_core.phases.p7_experts.genome import Composition
from training_core.phases.p7_experts.gradient_profile import measure_profile
from training_core.phases.p7_experts.measurement import AnswerComparison, expected_by, measure_answers, measure_text
from training_core.phases.p7_experts.report import exhibit
from training_core.phases.p7_experts.reproduction_check import measure_expert_bundle
from training_core.phases.p7_experts.result import ExpertResult
from training_core.phases.p7_experts.search import SearchResult, knee_of, search
from training_core.phases.p7_experts.train_experts import Teacher, TrainedExpert
from training_core.store.bundle import Product
from training_core.svf.expert_accuracy import PerExpertAccuracy, family_drops, of_each_family
from training_core.svf.routing import ClassifierRouter, PromptRouter
from training_core.tasks.questions.context import QUESTIONED, QuestionContext
from training_core.tasks.questions.likelihood import AskedQuestions
from training_core.tasks.questions.question import Question
from training_core.training.device import best_device
from training_core.training.loop import step_generator

PROFILE_STEP, ROUTER_STEP, FEW_SHOT_STEP = -1_000_001, -1_000_002, -1_000_100  # of `step_generator`


def make_experts(
    parent: Cognate, settings: TernarySettings, context: QuestionContext, config: ExpertsConfig
) -> Product:
    """Find, teach, route and compose experts for a straight-through ternary `parent`, and measure what came of it.

    A run that was killed goes on from the checkpoint: with the expert that it had not finished, or behind the last
    generation of the search.

    Raises:
        ValueError: when no questions are easy enough (`hardest_level`), those of a family are too few for a race
            (`search.racing_share`), or the windows of text are no longer than `routed_tokens`.
    """
    parent.to(best_device()).eval()
    round_to_half_(parent)
    specialists = Specialists(parent, context, config)
    discovery = specialists.discover()
    taught = [specialists.teacher.teach(profile) for profile in discovery.experts]
    router = specialists.fit_router(discovery)
    found = specialists.search(taught, router)
    composition, why = specialists.choose(found, taught, router)
    chosen_on, coefficients = specialists.on_validation(discovery, taught)
    experts = Experts(
        specialists.model,
        tuple(its.expert for its in taught),
        tuple(profile.name for profile in discovery.experts),
        router.head,
        composition,
        config.questions.routed_tokens,
    )
    document = experts.document([profile.families for profile in discovery.experts])
    context.fix(parent, document, *(its.expert.codes for its in taught), router.head.tensors(""))
    answers = specialists.measure(discovery, taught, router, found, composition, chosen_on, coefficients)
    metrics = _metrics(discovery, taught, router, found, answers)
    metrics |= {"handed_on": float(not composition.adapts), "experts_in_use": float(sum(composition.experts))}
    shown = exhibit(discovery, taught, found, composition, answers, specialists.model, why)
    product = ternary_product(
        parent.cpu(), settings, context.training.tokenizer_json, metrics=metrics, exhibits={"experts": shown.as_json()}
    )
    probed = context.report.text.inputs[:PROBED_ROWS, :PROBED_TOKENS]
    return replace(
        product,
        model_config={**product.model_config, "experts": document},
        tensors={**(product.tensors or {}), **experts.tensors(probed)},
    )


class Specialists:
    """The parts of the phase, which share the model, its questions up to `hardest_level`, and what is cached."""

    def __init__(self, parent: Cognate, context: QuestionContext, config: ExpertsConfig) -> None:
        self.config, self.context = config, context
        level = config.questions.hardest_level
        self.train = _up_to(context.train_questions, level)
        self.validation = _up_to(context.selection.questions, level)
        context.refuse_unless(partial(_require_up_to, level=level))
        self.fingerprint = context.fingerprint(parent, config)
        self.cache = context.cache(self.fingerprint)
        self.shared = self._shared(parent)  # refused before anything is trained
        self.model = SVFModel(parent)
        self.teacher = Teacher(self.model, config, context, self.train, self.validation, self.cache)

    def discover(self) -> Discovery:
        """How many experts, and for which families: seconds, and the same every time."""
        self.context.reporter.progress(0, 1, "the model's own profile")
        profile = measure_profile(self.model, self.asked(self.train, self.config.questions.profile_questions))
        generator = step_generator(self.config.learning.seed, PROFILE_STEP)
        found = discover(
            profile, generator, self.config.questions.profile_resamples, self.config.questions.most_experts
        )
        self.context.reporter.progress(1, 1, f"the model's own profile: {found.num_experts} experts")
        return found

    def fit_router(self, discovery: Discovery) -> ClassifierRouter:
        """The first pass: a linear head, which learns from training questions and training text."""
        config = self.config
        generator = step_generator(config.learning.seed, ROUTER_STEP)
        text = self.context.training.batch(
            TEXT_ONLY, config.questions.router_texts, config.questions.routed_tokens, generator
        ).tolist()
        questions = of_each_family(self.train, config.questions.router_questions)
        return ClassifierRouter.fit(self.model.model, self.context.tokenizer, questions, discovery.expert_of, text)

    def search(self, taught: list[TrainedExpert], router: ClassifierRouter) -> SearchResult:
        """The front of compositions, and its knee."""
        config = self.config
        evaluator = Evaluator(
            self.model,
            [its.expert for its in taught],
            self.shared,
            router.probabilities(self.shared.questions),
            router.of_prompts(self.shared.inputs_WS[:, : config.questions.routed_tokens].tolist()),
            router_bytes=router.head.num_bytes,
            latency_bound=config.search.latency_bound,
            latency_questions=config.search.latency_questions,
            latency_repeats=config.search.latency_repeats,
        )
        path = None if self.context.checkpoint is None else self.context.checkpoint / "search.safetensors"
        found = search(evaluator, config.search, self.context.reporter, path, self.fingerprint)
        self.context.reporter.figure("search", found.figure())
        return found

    def choose(
        self, found: SearchResult, taught: list[TrainedExpert], router: ClassifierRouter
    ) -> tuple[Composition, str]:
        """The knee of the points that make no family worse on validation questions, beyond chance or by more than a
        point; why it is the model without experts, empty where it is not."""
        left, refused = list(found.front), ""
        while (point := knee_of(left, found.unadapted))[0].adapts:
            harm = self.cache.cached(f"harm {len(left)}", partial(self._harm, point[0], taught, router))
            if harm["low"] <= 0 and not EXPERTS.exceeded(1.0, harm["fall"]):
                return point[0], ""
            left.remove(point)
            fall = f"would fall by {harm['fall']:.4f}, and one family by {harm['low']:.4f} at least"
            refused = refused or f"at the knee the family {harm['family']} {fall}"
        reason = refused or "none of the front gains in accuracy"
        return found.unadapted[0], f"no composition is better and does no harm on validation questions: {reason}"

    def _harm(
        self, composition: Composition, taught: list[TrainedExpert], router: ClassifierRouter
    ) -> Mapping[str, Any]:
        """The largest fall of a family on validation questions, and the highest low end of any."""
        asked = self.asked(self.validation, self.config.questions.chosen_questions)
        none_Q = PerExpertAccuracy.measure(self.model, [], asked).none_Q
        after_Q = expected_by(self.model, [its.expert for its in taught], composition, router, asked)
        drops = family_drops(none_Q, after_Q, asked.questions)
        worst = max(drops, key=lambda family: drops[family].value)
        low = max(drop.low for drop in drops.values())
        return {"family": worst, "fall": drops[worst].value, "low": low}

    def on_validation(
        self, discovery: Discovery, taught: list[TrainedExpert]
    ) -> tuple[PerExpertAccuracy, list[Tensor]]:
        """What is chosen on validation questions to be compared with: the best single expert, and few-shot mixtures."""
        experts = [its.expert for its in taught]
        asked = self.asked(self.validation, self.config.questions.chosen_questions)
        chosen_on = PerExpertAccuracy.measure(self.model, experts, asked)
        return chosen_on, [self._few_shot(p.number, p.families, taught) for p in discovery.experts]

    def measure(
        self,
        discovery: Discovery,
        taught: list[TrainedExpert],
        router: ClassifierRouter,
        found: SearchResult,
        composition: Composition,
        chosen_on: PerExpertAccuracy,
        coefficients: list[Tensor],
    ) -> AnswerComparison:
        """Everything that is said of the stored model, on test questions and test text."""
        config, report = self.config, self.context.report
        taught = [self.teacher.measure_rival(p, its) for p, its in zip(discovery.experts, taught, strict=True)]
        experts = [its.expert for its in taught]
        asked = self.asked(
            _up_to(report.questions, config.questions.hardest_level), config.questions.measured_questions
        )
        prompt = PromptRouter(self.model.model, self.context.tokenizer, [p.name for p in discovery.experts])
        answers = measure_answers(
            self.model, taught, discovery, router, prompt, composition, coefficients, chosen_on, asked,
            found.latencies,
        )  # fmt: skip
        text = measure_text(
            self.model,
            experts,
            composition,
            router,
            report.text,
            config.questions.routed_tokens,
            self.context.batch_size,
        )
        return replace(answers, text=text)

    def asked(self, questions: Sequence[Question], number: int) -> AskedQuestions:
        """So many questions of every family, encoded once."""
        return AskedQuestions(
            of_each_family(questions, number), self.context.tokenizer, self.model.model.config.max_seq_len
        )

    def _few_shot(self, number: int, families: tuple[str, ...], taught: list[TrainedExpert]) -> Tensor:
        """Coefficients (experts,) for one group of families, from a few solved validation examples."""
        its = [question for question in self.validation if question.family in families]
        shots = self.asked(its, max(1, self.config.questions.few_shot_shots // len(families)))
        generator = step_generator(self.config.learning.seed, FEW_SHOT_STEP - number)
        experts = [one.expert for one in taught]

        def climb() -> Mapping[str, Any]:
            return few_shot_weights(self.model, experts, shots, self.config.few_shot, generator).document()

        return torch.tensor(self.cache.cached(f"few shots {number}", climb)["weights"])

    def _shared(self, model: Cognate) -> Shared:
        config = self.config
        found = shared(
            self.validation,
            self.context.selection.text,
            self.context.tokenizer,
            model.config.max_seq_len,
            num_questions=config.search.questions,
            num_windows=config.search.windows,
            racing_share=config.search.racing_share,
            window_tokens=config.search.window_tokens,
        )
        targets_WS = found.targets_WS.clone()
        targets_WS[:, : config.questions.routed_tokens] = -1  # a text is routed by its beginning, which is not measured
        if not bool((targets_WS >= 0).any()):
            raise ValueError(
                f"windows of {targets_WS.shape[1]} tokens have nothing behind the "
                f"{config.questions.routed_tokens} by which they are routed: lower questions.routed_tokens, or raise "
                "search.window_tokens"
            )
        return replace(found, targets_WS=targets_WS)


def _up_to(questions: Sequence[Question], level: int) -> list[Question]:
    """The questions up to a level: of harder ones a small model has nothing to tell its experts apart by.

    Raises:
        ValueError: when there is none.
    """
    found = [question for question in questions if question.level <= level]
    if not found:
        raise ValueError(f"there are no questions up to level {level} in every split: raise hardest_level")
    return found


def _require_up_to(questions: Sequence[Question], level: int) -> None:
    _up_to(questions, level)


def _metrics(
    discovery: Discovery,
    taught: list[TrainedExpert],
    router: ClassifierRouter,
    found: SearchResult,
    answers: AnswerComparison,
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


def _expert(context: QuestionContext, config: ExpertsConfig) -> Product:
    parent = context.parents["baked_model"]
    return make_experts(load_latents(parent), ternary_settings(parent), context, config)


PHASES = (
    Phase(
        "expert_model",
        7,
        "The baked model, and beside it experts on its singular values that it found, routed and composed.",
        ExpertsConfig,
        _expert,
        ("baked_model",),
        QUESTIONED,
        gates=GATES["expert_model"],
        result=ExpertResult,
        kind="ternary",
        measure=measure_expert_bundle,
        sandboxed=True,
        context=QuestionContext,
    ),
)
