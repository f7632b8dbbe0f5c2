"""Experts that a compressed file carries: taught anew on the student, because theirs are other matrices.

    experts.codes      int8 (experts, singular values of all matrices)     multipliers, as `experts.singular.Expert`
    experts.spreads    float16 (experts, matrices)
    experts.head.*     the router, as `experts.routing.Head`: int8 codes, float16 scales and biases

The teacher says how many experts there are and for which families. Each learns from the same completions, on the
student as it decodes from its file; one that does not help beyond chance on validation questions stays out of the file.
What is decomposed is the decoded ternary weight, in float64, so that no decomposition is stored.

**Does not cover** a search over compositions: the likeliest expert of a text has all the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from torch import Tensor

from training_core.compression.container import Container, ContainerError
from training_core.compression.tensor_code import HalfCode, Int8Code, TensorCode
from training_core.data.batches import MixConfig, TrainingData
from training_core.evaluation.intervals import Estimate
from training_core.experts.answers import Alone, accuracy, gain, of_each_family
from training_core.experts.learning import ExpertLearningConfig, learn_supervised
from training_core.experts.routing import ClassifierRouter, Head
from training_core.experts.singular import Expert, Scalable
from training_core.models.cognate import Cognate
from training_core.questions.bank import QuestionBank
from training_core.questions.likelihood import AskedQuestions, example_of
from training_core.questions.question import Question
from training_core.training.loop import step_generator
from training_core.training.reporting import Reporter

PREFIX = "experts."
TEXT_ONLY = MixConfig(text_share=1.0, arithmetic_share=0.0, logic_share=0.0, needle_share=0.0)
ROUTER_STEP = -1_000_001


class StudentExpertsConfig(BaseModel):
    """How the experts of the file are taught and measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expert_steps: int = Field(40, ge=1, description="Steps that each expert of the file is taught")
    expert_batch: int = Field(32, ge=1, description="Worked completions in each of them")
    expert_lr: float = Field(0.1, gt=0, description="Peak learning rate of the experts of the file")
    expert_questions: int = Field(400, ge=1, description="Training questions of a family that they learn from")
    expert_measured: int = Field(
        40, ge=2, description="Validation, and test, questions of a family they are measured on"
    )
    expert_texts: int = Field(200, ge=1, description="Pieces of training text that teach their router to choose none")
    expert_text_tokens: int = Field(16, ge=1, description="Tokens of such a piece")


@dataclass(frozen=True, slots=True)
class FileExperts:
    """Experts as a file carries them, by name, and their router, which has one class more: none, which comes first."""

    names: tuple[str, ...]
    experts: tuple[Expert, ...]
    head: Head

    def codes(self, matrices: Sequence[str]) -> dict[str, TensorCode]:
        """As tensors of a container."""
        codes = np.stack([np.concatenate([e.codes[name].numpy() for name in matrices]) for e in self.experts])
        spreads = np.array([[float(e.spreads[name]) for name in matrices] for e in self.experts], np.float32)
        return {
            f"{PREFIX}codes": Int8Code(codes, 1.0),
            f"{PREFIX}spreads": HalfCode.from_values(spreads),
            f"{PREFIX}head.codes": Int8Code(self.head.codes_CD.numpy(), 1.0),
            f"{PREFIX}head.scales": HalfCode.from_values(self.head.scales_C.float().numpy()),
            f"{PREFIX}head.biases": HalfCode.from_values(self.head.biases_C.float().numpy()),
        }

    @contextmanager
    def answering(
        self, scalable: Scalable, prompt: Sequence[int], tokenizer: Tokenizer
    ) -> Iterator[tuple[Cognate, str]]:
        """The model as the likeliest expert of a prompt (token ids) has it, and that expert's name, "" for none."""
        with scalable.using(None) as model:
            choice = int(ClassifierRouter(model, tokenizer, self.head).of_prompts([prompt])[0].argmax())
        multipliers = None if choice == 0 else self.experts[choice - 1].multipliers()
        with scalable.using(multipliers) as model:
            yield model, "" if choice == 0 else self.names[choice - 1]


@dataclass(frozen=True, slots=True)
class StudentTeaching:
    """What came of it: experts for the file (None where none helps), the share of the teacher's that are in it, and
    what routing between them gains on test questions, families weighted alike."""

    kept: FileExperts | None
    taught: int
    gain: Estimate
    accuracy: float

    def metrics(self) -> dict[str, float]:
        """As flat metrics."""
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
    data: TrainingData,
    bank: QuestionBank,
    config: StudentExpertsConfig,
    seed: int,
    reporter: Reporter,
    checkpoint: Path | None,
) -> StudentTeaching:
    """Experts for a student as it decodes from its file. `families` are those of each of the teacher's experts.

    Raises:
        ValueError: when there is no expert, or as `learn_supervised`.
    """
    if not names or len(names) != len(families):
        raise ValueError(f"every expert has a name and families, got {len(names)} and {len(families)}")
    tokenizer = Tokenizer.from_str(data.tokenizer_json)
    scalable = Scalable(student)
    learning = ExpertLearningConfig(
        supervised_steps=config.expert_steps,
        supervised_batch=config.expert_batch,
        supervised_lr=config.expert_lr,
        seed=seed,
    )
    experts: list[Expert] = []
    for number, its in enumerate(families, 1):
        questions = of_each_family([q for q in bank.train if q.family in its], config.expert_questions)
        examples = [example_of(question, tokenizer) for question in questions]
        label = f"expert {number} of the file"
        experts.append(
            learn_supervised(scalable, examples, learning, reporter, checkpoint=checkpoint, label=label).expert
        )

    def alone(questions: Sequence[Question], those: Sequence[Expert]) -> Alone:
        chosen = of_each_family(questions, config.expert_measured)
        return Alone.measure(scalable, those, AskedQuestions(chosen, tokenizer, scalable.model.config.max_seq_len))

    kept = _helpful(alone(bank.validation, experts), families)
    if not kept:
        on_test = alone(bank.test, [])
        return StudentTeaching(None, len(experts), *_gain(on_test, on_test.none_Q))
    expert_of = {family: place for place, number in enumerate(kept, 1) for family in families[number]}
    text = data.batch(TEXT_ONLY, config.expert_texts, config.expert_text_tokens, step_generator(seed, ROUTER_STEP))
    taught_on = of_each_family(bank.train, config.expert_measured)
    router = ClassifierRouter.fit(scalable.model, tokenizer, taught_on, expert_of, text.tolist())
    found = FileExperts(tuple(names[n] for n in kept), tuple(experts[n] for n in kept), router.head)
    on_test = alone(bank.test, found.experts)
    with scalable.using(None):
        choice_Q = router.probabilities(on_test.questions).argmax(1)
    return StudentTeaching(found, len(experts), *_gain(on_test, on_test.chosen(choice_Q)))


def read_experts(container: Container, matrices: Mapping[str, int]) -> FileExperts | None:
    """The experts of a file, None where it carries none. `matrices` have so many singular values each, in order.

    Raises:
        ContainerError: when they are not those of this model.
    """
    if "experts" not in container.config:
        return None
    names = container.config["experts"]
    found = {
        name.removeprefix(PREFIX): torch.from_numpy(np.array(code.dequantize(), np.float32))
        for name, code in container.tensors.items()
        if name.startswith(PREFIX)
    }
    try:
        codes_KR, spreads_KM = found["codes"].to(torch.int8), found["spreads"].half()
        head = Head(found["head.codes"].to(torch.int8), found["head.scales"].half(), found["head.biases"].half())
    except KeyError as error:
        raise ContainerError(f"the file names experts but has no tensor {PREFIX}{error.args[0]}") from error
    shapes = [tuple(codes_KR.shape), tuple(spreads_KM.shape), tuple(head.scales_C.shape), tuple(head.biases_C.shape)]
    count = len(names) if isinstance(names, list) else 0
    expected = [(count, sum(matrices.values())), (count, len(matrices)), (count + 1,), (count + 1,)]
    if not count or shapes != expected or not all(isinstance(name, str) for name in names):
        raise ContainerError(f"the file's experts must have the shapes {expected} of {names!r:.100}, got {shapes}")
    experts = []
    for codes_R, spreads_M in zip(codes_KR, spreads_KM, strict=True):
        parts = codes_R.split(list(matrices.values()))
        experts.append(Expert(dict(zip(matrices, parts, strict=True)), dict(zip(matrices, spreads_M, strict=True))))
    return FileExperts(tuple(names), tuple(experts), head)


def _helpful(chosen_on: Alone, families: Sequence[Sequence[str]]) -> list[int]:
    """The experts, from 0, with which their families are answered better beyond chance, on validation questions."""
    kept = []
    for number, its in enumerate(families):
        places = [place for place, question in enumerate(chosen_on.questions) if question.family in its]
        with_Q, without_Q = chosen_on.expected_KQ[number + 1][places], chosen_on.none_Q[places]
        if places and gain(with_Q, without_Q, [chosen_on.questions[place] for place in places]).low > 0:
            kept.append(number)
    return kept


def _gain(on_test: Alone, routed_Q: Tensor) -> tuple[Estimate, float]:
    its = gain(routed_Q, on_test.none_Q, on_test.questions)
    return its, accuracy(routed_Q, on_test.questions).value
