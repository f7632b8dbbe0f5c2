"""Phase 7: find experts for a baked model, train them, fit a router, search compositions, and evaluate the result.

    profile -> N experts and their families -> train each expert -> a router -> a front of compositions -> its knee

The model itself is unchanged, bit for bit; experts and router are stored beside it. Choices are made on validation
data: the better training method for each expert, the best single expert, and the composition. A composition that makes
a family significantly worse on validation questions is rejected; if none is left, the model answers without experts,
and the report says why. Reported numbers are measured on test questions and test text.

**Does not cover**: experts for text. Text is routed like questions, by its first tokens, so that the harm an expert
would do to it is measured and can rule a composition out.
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

PROFILE_STEP, ROUTER_STEP, FEW_SHOT_STEP = -1_000_001, -1_000_002, -1_000_100  # steps of `step_generator`


def make_experts(
    parent: Cognate, settings: TernarySettings, context: QuestionContext, config: ExpertsConfig
) -> Product:
    """Find, train, route and compose experts for `parent`, which has latent ternary weights, and evaluate the result.

    An interrupted run resumes from the checkpoint, at the unfinished expert or after the last generation of the search.

    Raises:
        ValueError: when no questions are easy enough (`hardest_level`), a family has too few for a race
            (`search.racing_share`), or the windows of text are no longer than `routed_tokens`.
    """
    parent.to(best_device()).eval()
    round_to_half_(parent)
    specialists = Specialists(parent, context, config)
    discovery = specialists.discover()
    taught = [specialists.teacher.teach(profile) for profile in discovery.experts]
    router = specialists.fit_router(discovery)
    searched = specialists.search(taught, router)
    composition, why = specialists.choose(searched, taught, router)
    chosen_on, coefficients = specialists.on_validation(discovery, taught)
    experts = Experts(
        specialists.model,
        tuple(trained.expert for trained in taught),
        tuple(profile.name for profile in discovery.experts),
        router.head,
        composition,
        config.questions.routed_tokens,
    )
    document = experts.document([profile.families for profile in discovery.experts])
    context.fix(parent, document, *(trained.expert.tensors("") for trained in taught), router.head.tensors(""))
    answers = specialists.measure(discovery, taught, router, searched, composition, chosen_on, coefficients)
    metrics = _metrics(discovery, taught, router, searched, answers)
    metrics |= {"handed_on": float(not composition.adapts), "experts_in_use": float(sum(composition.experts))}
    shown = exhibit(discovery, taught, searched, composition, answers, specialists.model, why)
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
    """The steps of the phase, which share the model, its questions up to `hardest_level`, and the result cache."""

    def __init__(self, parent: Cognate, context: QuestionContext, config: ExpertsConfig) -> None:
        self.config, self.context = config, context
        level = config.questions.hardest_level
        self.train = _up_to(context.train_questions, level)
        self.validation = _up_to(context.selection.questions, level)
        context.refuse_unless(partial(_require_up_to, level=level))
        self.fingerprint = context.fingerprint(parent, config)
        self.cache = context.cache(self.fingerprint)
        self.shared = self._shared(parent)  # raises before anything is trained
        self.model = SVFModel(parent)
        self.teacher = Teacher(self.model, config, context, self.train, self.validation, self.cache)

    def discover(self) -> Discovery:
        """Decide the number of experts and their families. Takes seconds and is deterministic, so it is not cached."""
        self.context.reporter.progress(0, 1, "the model's own profile")
        profile = measure_profile(self.model, self.asked(self.train, self.config.questions.profile_questions))
        generator = step_generator(self.config.learning.seed, PROFILE_STEP)
        discovery = discover(
            profile, generator, self.config.questions.profile_resamples, self.config.questions.most_experts
        )
        self.context.reporter.progress(1, 1, f"the model's own profile: {discovery.num_experts} experts")
        return discovery

    def fit_router(self, discovery: Discovery) -> ClassifierRouter:
        """Fit the router of the first pass, a linear head, on training questions and training text."""
        config = self.config
        generator = step_generator(config.learning.seed, ROUTER_STEP)
        text = self.context.training.batch(
            TEXT_ONLY, config.questions.router_texts, config.questions.routed_tokens, generator
        ).tolist()
        questions = of_each_family(self.train, config.questions.router_questions)
        return ClassifierRouter.fit(self.model.model, self.context.tokenizer, questions, discovery.expert_of, text)

    def search(self, taught: list[TrainedExpert], router: ClassifierRouter) -> SearchResult:
        """Search for the front of compositions and its knee."""
        config = self.config
        evaluator = Evaluator(
            self.model,
            [trained.expert for trained in taught],
            self.shared,
            router.probabilities(self.shared.questions),
            router.of_prompts(self.shared.inputs_WS[:, : config.questions.routed_tokens].tolist()),
            router_bytes=router.head.num_bytes,
            latency_bound=config.search.latency_bound,
            latency_questions=config.search.latency_questions,
            latency_repeats=config.search.latency_repeats,
        )
        path = None if self.context.checkpoint is None else self.context.checkpoint / "search.safetensors"
        result = search(evaluator, config.search, self.context.reporter, path, self.fingerprint)
        self.context.reporter.figure("search", result.figure())
        return result

    def choose(
        self, searched: SearchResult, taught: list[TrainedExpert], router: ClassifierRouter
    ) -> tuple[Composition, str]:
        """Return the knee of the front among compositions that do not harm any family on validation questions.

        Harm is a significant accuracy drop, or one of more than a point. The second value says why the model answers
        without experts, and is empty if it uses them.
        """
        left, refused = list(searched.front), ""
        while (point := knee_of(left, searched.unadapted))[0].adapts:
            harm = self.cache.cached(f"harm {len(left)}", partial(self._harm, point[0], taught, router))
            if harm["low"] <= 0 and not EXPERTS.exceeded(1.0, harm["fall"]):
                return point[0], ""
            left.remove(point)
            fall = f"would fall by {harm['fall']:.4f}, and one family by {harm['low']:.4f} at least"
            refused = refused or f"at the knee the family {harm['family']} {fall}"
        reason = refused or "none of the front gains in accuracy"
        return searched.unadapted[0], f"no composition is better and does no harm on validation questions: {reason}"

    def _harm(
        self, composition: Composition, taught: list[TrainedExpert], router: ClassifierRouter
    ) -> Mapping[str, Any]:
        """Return the family with the largest accuracy drop on validation questions, and that drop.

        `low` is the largest lower bound of the CI of any family's drop.
        """
        asked = self.asked(self.validation, self.config.questions.chosen_questions)
        none_Q = PerExpertAccuracy.measure(self.model, [], asked).none_Q
        after_Q = expected_by(self.model, [trained.expert for trained in taught], composition, router, asked)
        drops = family_drops(none_Q, after_Q, asked.questions)
        worst = max(drops, key=lambda family: drops[family].value)
        low = max(drop.low for drop in drops.values())
        return {"family": worst, "fall": drops[worst].value, "low": low}

    def on_validation(
        self, discovery: Discovery, taught: list[TrainedExpert]
    ) -> tuple[PerExpertAccuracy, list[Tensor]]:
        """Return, from validation questions, each expert's accuracies and the few-shot mixture of each group."""
        experts = [trained.expert for trained in taught]
        asked = self.asked(self.validation, self.config.questions.chosen_questions)
        chosen_on = PerExpertAccuracy.measure(self.model, experts, asked)
        return chosen_on, [self._few_shot(p.number, p.families, taught) for p in discovery.experts]

    def measure(
        self,
        discovery: Discovery,
        taught: list[TrainedExpert],
        router: ClassifierRouter,
        searched: SearchResult,
        composition: Composition,
        chosen_on: PerExpertAccuracy,
        coefficients: list[Tensor],
    ) -> AnswerComparison:
        """Evaluate the stored model and all baselines on test questions and test text."""
        config, report = self.config, self.context.report
        taught = [self.teacher.measure_rival(p, trained) for p, trained in zip(discovery.experts, taught, strict=True)]
        experts = [trained.expert for trained in taught]
        asked = self.asked(
            _up_to(report.questions, config.questions.hardest_level), config.questions.measured_questions
        )
        prompt = PromptRouter(self.model.model, self.context.tokenizer, [p.name for p in discovery.experts])
        answers = measure_answers(
            self.model, taught, discovery, router, prompt, composition, coefficients, chosen_on, asked,
            searched.latencies,
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
        """Return `number` questions of every family, tokenised."""
        return AskedQuestions(
            of_each_family(questions, number), self.context.tokenizer, self.model.model.config.max_seq_len
        )

    def _few_shot(self, number: int, families: tuple[str, ...], taught: list[TrainedExpert]) -> Tensor:
        """Return coefficients (experts,) for one group of families, from a few solved validation examples."""
        questions = [question for question in self.validation if question.family in families]
        shots = self.asked(questions, max(1, self.config.questions.few_shot_shots // len(families)))
        generator = step_generator(self.config.learning.seed, FEW_SHOT_STEP - number)
        experts = [one.expert for one in taught]

        def climb() -> Mapping[str, Any]:
            return few_shot_weights(self.model, experts, shots, self.config.few_shot, generator).document()

        return torch.tensor(self.cache.cached(f"few shots {number}", climb)["weights"])

    def _shared(self, model: Cognate) -> Shared:
        config = self.config
        batches = shared(
            self.validation,
            self.context.selection.text,
            self.context.tokenizer,
            model.config.max_seq_len,
            num_questions=config.search.questions,
            num_windows=config.search.windows,
            racing_share=config.search.racing_share,
            window_tokens=config.search.window_tokens,
        )
        targets_WS = batches.targets_WS.clone()
        targets_WS[:, : config.questions.routed_tokens] = -1  # the router reads these tokens, so they are not scored
        if not bool((targets_WS >= 0).any()):
            raise ValueError(
                f"windows of {targets_WS.shape[1]} tokens have none left after the {config.questions.routed_tokens} "
                "that the router reads: lower questions.routed_tokens, or raise search.window_tokens"
            )
        return replace(batches, targets_WS=targets_WS)


def _up_to(questions: Sequence[Question], level: int) -> list[Question]:
    """Return the questions up to a level, because harder ones do not discriminate between a small model's experts.

    Raises:
        ValueError: when there are none.
    """
    easy = [question for question in questions if question.level <= level]
    if not easy:
        raise ValueError(f"there are no questions up to level {level} in every split: raise hardest_level")
    return easy


def _require_up_to(questions: Sequence[Question], level: int) -> None:
    _up_to(questions, level)


def _metrics(
    discovery: Discovery,
    taught: list[TrainedExpert],
    router: ClassifierRouter,
    searched: SearchResult,
    answers: AnswerComparison,
) -> dict[str, float]:
    expert = taught[0].expert
    differences = searched.differences()
    metrics = {
        "num_experts": float(discovery.num_experts),
        "experts_wanted": float(discovery.wanted),
        "expert_number_stability": discovery.same_number,
        "expert_parameters": float(expert.num_parameters),
        "expert_bytes": float(expert.num_bytes),
        "router_bytes": float(router.head.num_bytes),
        "experts_by_reward": float(sum(trained.method == "reward" for trained in taught)),
        "hypervolume_over_random": sum(differences) / len(differences),
        "hypervolume_over_random_low": min(differences),
    }
    for profile, trained in zip(discovery.experts, taught, strict=True):
        for method, gain in trained.gains.items():
            metrics |= gain.metrics(f"expert_{profile.number}_{method.replace(' ', '_')}_gain")
    return metrics | searched.metrics() | answers.metrics()


def _expert(context: QuestionContext, config: ExpertsConfig) -> Product:
    parent = context.parents["baked_model"]
    return make_experts(load_latents(parent), ternary_settings(parent), context, config)


PHASES = (
    Phase(
        "expert_model",
        7,
        "The baked model with experts on its singular values, found from its own profile, routed and composed.",
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
