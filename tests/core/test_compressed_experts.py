"""Experts in the compressed file: they come back from it as they were taught, and a file that lies is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from forge_assets.generate_text import from_artifact
from tests.core.small_experts import FAMILIES, bank
from tests.nested import nested
from training_core.data.batches import TrainingData
from training_core.data.tokenizer import load_tokenizer
from training_core.formats.artifact import make_compressible, read_artifact, write_artifact
from training_core.formats.container import ContainerError, read_container, write_container
from training_core.formats.file_experts import PREFIX
from training_core.formats.tensor_code import Int8Code
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.svf import SVFModel, scaled_matrices
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.student import carry_experts
from training_core.phases.p8_compression.student_experts import FileExpertsReport, answering, teach_student
from training_core.svf.expert_accuracy import of_each_family
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.likelihood import AskedQuestions

CONFIG = nested(
    CompressionConfig,
    experts_steps=12, experts_batch_size=8, experts_lr=0.3, experts_questions=12, experts_measured=6, experts_texts=12,
    experts_text_tokens=8,
)  # fmt: skip
GROUPS = (("copying", "lists"), ("counting",), ("ordering",))


@pytest.fixture(scope="module")
def data(small_data: dict[str, Path]) -> TrainingData:
    return TrainingData.open(small_data["tokens"], small_data["task_bank"])


def student() -> Cognate:
    torch.manual_seed(3)
    shape = {"d_model": 24, "num_heads": 2, "d_ff": 32, "num_layers": 2, "num_core_layers": 2, "memory_layers": []}
    model = Cognate(CognateConfig(vocab_size=320, max_seq_len=320, num_persistent=0, **shape))  # type: ignore[arg-type]
    make_compressible(model, 0.5, "tensor")
    return model


@pytest.fixture(scope="module")
def contexts(small_data: dict[str, Path]) -> Callable[[], QuestionContext]:
    return lambda: QuestionContext(folders=small_data, bank=bank())


@pytest.fixture(scope="module")
def carried(data: TrainingData, contexts: Callable[[], QuestionContext]) -> tuple[bytes, bytes, FileExpertsReport]:
    """The file without experts, the file with them, and what they are worth."""
    model = student()
    without = write_artifact(model, data.tokenizer_json, 0.5, "tensor")
    names = [families[0] for families in GROUPS]
    payload, taught = carry_experts(without, model, names, GROUPS, CONFIG, contexts())
    return without, payload, taught


def test_experts_come_back_from_the_file_as_they_were_taught(
    carried: tuple[bytes, bytes, FileExpertsReport], data: TrainingData
) -> None:
    without, payload, taught = carried
    kept = taught.kept
    assert kept is not None
    read = read_artifact(payload)
    assert read.experts is not None
    assert read.experts.names == kept.names
    for mine, its in zip(kept.experts, read.experts.experts, strict=True):
        assert all(torch.equal(mine.codes[name], its.codes[name]) for name in mine.codes)
        assert all(torch.equal(mine.spreads[name], its.spreads[name]) for name in mine.spreads)
    assert torch.equal(kept.head.codes_CD, read.experts.head.codes_CD)
    assert torch.equal(kept.head.biases_C, read.experts.head.biases_C)
    metrics = taught.metrics()
    assert metrics["file_experts"] == len(kept.experts) <= metrics["file_experts_taught"] == 3
    assert metrics["file_expert_parameters"] == len(kept.experts) * sum(scaled_matrices(student()).values())
    assert 0 < len(payload) - len(without) < metrics["file_expert_parameters"] + 600, "a byte each, and the directory"
    with torch.no_grad():
        tokens = torch.randint(1, 320, (2, 12), generator=torch.Generator().manual_seed(0))
        assert torch.equal(read.model(tokens).logits, read_artifact(without).model(tokens).logits)


def test_what_is_measured_is_what_the_file_answers(
    carried: tuple[bytes, bytes, FileExpertsReport], data: TrainingData
) -> None:
    """Each test question routed and answered alone from the file gives the accuracy that is printed."""
    _, payload, taught = carried
    read = read_artifact(payload)
    assert read.experts is not None
    tokenizer, scalable = load_tokenizer(data.tokenizer_json), SVFModel(read.model)
    questions = of_each_family(bank().test, CONFIG.experts.measured)
    expected: dict[str, list[float]] = {}
    for question in questions:
        prompt = tokenizer.encode(f"Question: {question.prompt}\nAnswer:").ids
        asked = AskedQuestions([question], tokenizer, 320)
        with answering(read.experts, scalable, prompt, tokenizer) as (model, name):
            told = asked.likelihoods(lambda _, inputs, model=model: model(inputs).logits)  # type: ignore[misc]
        assert name in ("", *read.experts.names)
        expected.setdefault(question.family, []).append(float(told.expected_Q()))
    mean = np.mean([np.mean(values) for values in expected.values()])
    assert taught.accuracy == pytest.approx(mean, rel=1e-4)
    assert set(expected) == set(FAMILIES)


def test_a_prompt_that_is_too_long_for_the_router_is_answered_without_experts(
    carried: tuple[bytes, bytes, FileExpertsReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same text as with --experts off, and one line says why; a prompt that just fits is routed."""
    (path := tmp_path / "model.forge").write_bytes(carried[1])
    read = read_artifact(carried[1])
    longest, tokenizer = read.model.config.max_seq_len, load_tokenizer(read.tokenizer_json)
    word = next(i for i in range(1, 300) if tokenizer.encode(tokenizer.decode([i]) * 9).ids == [i] * 9)
    for length, said in ((longest - 1, "forge: answers with "), (longest, "forge: answers without experts: ")):
        prompt = tokenizer.decode([word] * length)
        assert len(tokenizer.encode(prompt).ids) == length
        options = {"max_tokens": 5, "temperature": 0.0}
        spoken = list(from_artifact(path, prompt, "auto", options))
        assert capsys.readouterr().err.startswith(said)
        if length == longest:
            assert spoken == list(from_artifact(path, prompt, "off", options))


def test_an_expert_that_does_not_help_stays_out(data: TrainingData, contexts: Callable[[], QuestionContext]) -> None:
    """At a rate that does not move it none helps: the file is as it was."""
    model = student()
    without = write_artifact(model, data.tokenizer_json, 0.5, "tensor")
    still = nested(CONFIG, **{"experts_lr": 1e-12})
    payload, taught = carry_experts(without, model, ["a"], [["copying"]], still, contexts())
    assert taught.kept is None
    assert payload == without
    assert taught.metrics()["file_experts_gain"] == taught.metrics()["file_experts"] == 0.0
    assert read_artifact(payload).experts is None


def test_a_file_that_lies_about_its_experts_is_refused(carried: tuple[bytes, bytes, FileExpertsReport]) -> None:
    container = read_container(carried[1])
    names = container.config["experts"]

    def rewritten(config: dict[str, object], **tensors: object) -> bytes:
        return write_container(config, container.tokenizer_json, {**container.tensors, **tensors})  # type: ignore[dict-item]

    for wrong in ([*names, "more"], [], "text", [1] * len(names), {"a": 1}):
        with pytest.raises(ContainerError, match="experts must have the shapes"):
            read_artifact(rewritten({**container.config, "experts": wrong}))
    short = Int8Code(np.zeros((len(names), 3), np.int8), 1.0)
    with pytest.raises(ContainerError, match="experts must have the shapes"):
        read_artifact(rewritten(container.config, **{f"{PREFIX}codes": short}))
    lacking = {name: code for name, code in container.tensors.items() if name != f"{PREFIX}head.scales"}
    with pytest.raises(ContainerError, match=r"names experts but has no tensor experts\.head\.scales"):
        read_artifact(write_container(container.config, container.tokenizer_json, lacking))


def test_bad_input_says_what_to_change(contexts: Callable[[], QuestionContext]) -> None:
    with pytest.raises(ValueError, match="every expert has a name and families, got 2 and 1"):
        teach_student(student(), ["a", "b"], [["copying"]], contexts(), CONFIG.experts, 0)
    with pytest.raises(ValueError, match="no worked completions to learn from"):
        teach_student(student(), ["a"], [["absent"]], contexts(), CONFIG.experts, 0)
