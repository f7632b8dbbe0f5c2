"""The experts of a compressed file, trained anew on the student, whose matrices differ from the teacher's.

    experts.codes      int8 (experts, singular values of all matrices)     multipliers, as `nn.svf.Expert`
    experts.spreads    float16 (experts, matrices)
    experts.head.*     the router, as `nn.linear_head.Head`: int8 codes, float16 scales and biases

The teacher determines the number of experts and their families. Each expert is trained on worked completions of its
families, on the student as decoded from its file. Experts without a significant gain on validation questions are left
out of the file. The SVD is that of the decoded ternary weights in float64, so that it need not be stored.

**Does not cover** a search over compositions: the likeliest expert of a text has all the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tokenizers import Tokenizer

from training_core.data.batches import TEXT_ONLY
from training_core.formats.file_experts import FileExperts
from training_core.nn.cognate import Cognate
from training_core.nn.svf import Expert, SVFModel
from training_core.phases.p8_compression.config import StudentExpertsConfig
from training_core.record import Estimate
from training_core.svf.expert_accuracy import PerExpertAccuracy, accuracy, gain, of_each_family
from training_core.svf.routing import ClassifierRouter
from training_core.svf.supervised import ExpertLearningConfig, learn_supervised
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.likelihood import AskedQuestions, example_of
from training_core.tasks.questions.question import Question
from training_core.training.loop import step_generator

ROUTER_STEP = -1_000_001
_ROUNDING = 1e-12  # an expert whose multipliers did not move differs from none by less


@dataclass(frozen=True, slots=True)
class StudentTeaching:
    """Trained experts: the student with its SVD, the experts and router kept for the file, and the number trained.

    `kept` is None if no expert helps.
    """

    model: SVFModel
    kept: FileExperts | None
    taught: int


@dataclass(frozen=True, slots=True)
class FileExpertsReport:
    """Evaluation of a file's experts on test questions.

    `gain` is the macro-averaged accuracy gain of routing between the experts, `accuracy` the accuracy with routing.
    """

    kept: FileExperts | None
    taught: int
    gain: Estimate
    accuracy: float

    def metrics(self) -> dict[str, float]:
        """Return the report as the flat metrics of a bundle."""
        experts = () if self.kept is None else self.kept.experts
        return {
            "file_experts": float(len(experts)),
            "file_experts_taught": float(self.taught),
            "file_expert_parameters": float(sum(expert.num_parameters for expert in experts)),
            "file_accuracy_routed": self.accuracy,
            **self.gain.metrics("file_experts_gain"),
        }


def teach_student(
    student: Cognate,
    names: Sequence[str],
    families: Sequence[Sequence[str]],
    context: QuestionContext,
    config: StudentExpertsConfig,
    seed: int,
) -> StudentTeaching:
    """Train experts on a student as decoded from its file. `families` holds those of each of the teacher's experts.

    Raises:
        ValueError: when the teacher has no experts, or as `learn_supervised`.
    """
    if not names or len(names) != len(families):
        raise ValueError(f"every expert has a name and families, got {len(names)} and {len(families)}")
    tokenizer = context.tokenizer
    model = SVFModel(student)
    learning = ExpertLearningConfig(
        supervised_steps=config.steps,
        supervised_batch=config.batch_size,
        supervised_lr=config.lr,
        seed=seed,
    )
    experts: list[Expert] = []
    for number, own_families in enumerate(families, 1):
        questions = of_each_family([q for q in context.train_questions if q.family in own_families], config.questions)
        examples = [example_of(question, tokenizer) for question in questions]
        learned = learn_supervised(
            model,
            examples,
            learning,
            context.reporter,
            checkpoint=context.checkpoint,
            label=f"expert {number} of the file",
        )
        experts.append(learned.expert)
    chosen_on = _measured(model, experts, context.selection.questions, context, config)
    kept = _helpful(chosen_on, families)
    if not kept:
        return StudentTeaching(model, None, len(experts))
    expert_of = {family: place for place, number in enumerate(kept, 1) for family in families[number]}
    text = context.training.batch(TEXT_ONLY, config.texts, config.text_tokens, step_generator(seed, ROUTER_STEP))
    taught_on = of_each_family(context.train_questions, config.measured)
    router = ClassifierRouter.fit(model.model, tokenizer, taught_on, expert_of, text.tolist())
    file_experts = FileExperts(tuple(names[n] for n in kept), tuple(experts[n] for n in kept), router.head)
    return StudentTeaching(model, file_experts, len(experts))


def measure_student(
    teaching: StudentTeaching, context: QuestionContext, config: StudentExpertsConfig
) -> FileExpertsReport:
    """Measure the gain of the file's experts on test questions, with each question routed to its likeliest expert."""
    kept = teaching.kept
    if kept is None:
        on_test = _measured(teaching.model, [], context.report.questions, context, config)
        routed_Q = on_test.none_Q
    else:
        on_test = _measured(teaching.model, kept.experts, context.report.questions, context, config)
        router = ClassifierRouter(teaching.model.model, context.tokenizer, kept.head)
        with teaching.model.using(None):
            routed_Q = on_test.chosen(router.probabilities(on_test.questions).argmax(1))
    routing_gain = gain(routed_Q, on_test.none_Q, on_test.questions)
    return FileExpertsReport(kept, teaching.taught, routing_gain, accuracy(routed_Q, on_test.questions).value)


def _measured(
    model: SVFModel,
    experts: Sequence[Expert],
    questions: Sequence[Question],
    context: QuestionContext,
    config: StudentExpertsConfig,
) -> PerExpertAccuracy:
    chosen = of_each_family(questions, config.measured)
    asked = AskedQuestions(chosen, context.tokenizer, model.model.config.max_seq_len)
    return PerExpertAccuracy.measure(model, experts, asked)


@contextmanager
def answering(
    experts: FileExperts, svf: SVFModel, prompt: Sequence[int], tokenizer: Tokenizer
) -> Iterator[tuple[Cognate, str]]:
    """Yield the model with the likeliest expert for a prompt (token ids) applied, and that expert's name or ""."""
    with svf.using(None) as model:
        choice = int(ClassifierRouter(model, tokenizer, experts.head).of_prompts([prompt])[0].argmax())
    multipliers = None if choice == 0 else experts.experts[choice - 1].multipliers()
    with svf.using(multipliers) as model:
        yield model, "" if choice == 0 else experts.names[choice - 1]


def _helpful(chosen_on: PerExpertAccuracy, families: Sequence[Sequence[str]]) -> list[int]:
    """Return the indices of experts with a significant gain on validation questions of their own families."""
    kept = []
    for number, own_families in enumerate(families):
        places = [place for place, question in enumerate(chosen_on.questions) if question.family in own_families]
        with_Q, without_Q = chosen_on.expected_KQ[number + 1][places], chosen_on.none_Q[places]
        if places and gain(with_Q, without_Q, [chosen_on.questions[place] for place in places]).low > _ROUNDING:
            kept.append(number)
    return kept
