"""The controls of the file: trained as it was but for one thing, and measured beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.core.small_data import SHAPE, TRAINING
from tests.nested import nested
from training_core.formats.loading import load_model
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.ternary import ternarize
from training_core.phase import CONTROLS, PhaseContext
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.controls import PHASES, RoundingConfig, StudentControlConfig
from training_core.phases.p8_compression.student import train_compressed
from training_core.reporting import SilentReporter
from training_core.store.bundle import Bundle, Lineage, Product, write_bundle, write_measurements

FILE = nested(
    CompressionConfig, student_d_model=24, student_num_heads=2, student_d_ff=32, student_embedding_rank=12,
    student_window=16, training_steps=4, **{f"training_{name}": value for name, value in TRAINING.items()},
)  # fmt: skip


def stored(folder: Path, product: Product, config: CompressionConfig | None = None) -> Bundle:
    bundle = write_bundle(
        folder, kind=product.kind, model_config=product.model_config, tensors=product.tensors,
        tokenizer_json=product.tokenizer_json, payload=product.payload,
    )  # fmt: skip
    values = {} if config is None else config.model_dump(mode="json")
    write_measurements(bundle, Lineage(folder.name, 8, "nano", bundle.digest(), "", "", {}, values, {}), {})
    return bundle


@pytest.fixture(scope="module")
def parents(small_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A file that was made from the expert model, and another model as the merged one."""
    root = tmp_path_factory.mktemp("controls")
    context = PhaseContext(folders=small_data)
    found = {}
    for seed, name in enumerate(("expert_model", "merged_model")):
        torch.manual_seed(seed)
        net = Cognate(CognateConfig(vocab_size=320, **SHAPE))  # type: ignore[arg-type]
        document = {"cognate": net.config.model_dump()}
        tokenizer_json = context.training.tokenizer_json
        found[name] = stored(root / name, Product("cognate", document, net.state_dict(), tokenizer_json))
    teacher = load_model(found["expert_model"])
    payload, student, _ = train_compressed(teacher, FILE, context.training, SilentReporter())
    document = {"cognate": student.config.model_dump()}
    file = Product("compressed", document, None, context.training.tokenizer_json, payload=payload)
    return found | {"compressed_model": stored(root / "compressed_model", file, FILE)}


def made(
    name: str, parents: dict[str, Bundle], folders: dict[str, Path], tmp_path: Path, ratio: float = 1.0
) -> Product:
    phase = PHASES[name]
    config = StudentControlConfig(steps_ratio=ratio) if phase.kind == "compressed" else RoundingConfig()
    given = {parent: parents[parent] for parent in phase.parents}
    return phase.make(config, given, folders, SilentReporter(), tmp_path / name)


def test_students_are_trained_as_the_file_was_but_for_one_thing(
    parents: dict[str, Bundle], small_data: dict[str, Path], tmp_path: Path
) -> None:
    file = parents["compressed_model"].payload().read_bytes()
    same = parents | {"merged_model": parents["expert_model"]}
    assert made("student_from_merged", same, small_data, tmp_path).payload == file, "the file's teacher gives the file"
    payloads = [file]
    steps = {"student_taught_otherwise": 7, "student_from_random": 7, "student_from_merged": 4}  # 4 * 1.7 = 6.8
    for name, number in steps.items():
        product = made(name, parents, small_data, tmp_path / "own")
        assert product.metrics["train_optimizer_steps"] == number
        assert product.model_config == parents["compressed_model"].model_config
        payloads.append(product.payload or b"")
    assert len(set(payloads)) == 4
    assert (
        made("student_from_random", parents, small_data, tmp_path / "half", 0.5).metrics["train_optimizer_steps"] == 3
    )


def test_a_file_of_text_alone_is_compared_with_a_distilled_student(
    parents: dict[str, Bundle], small_data: dict[str, Path], tmp_path: Path
) -> None:
    """In as much time, which is 4 / 1.7 steps; what such a student learns from is the teacher's outputs."""
    alone = FILE.model_copy(update={"distillation": FILE.distillation.model_copy(update={"weight": 0.0})})
    file = parents["compressed_model"]
    product = Product("compressed", file.model_config, None, file.tokenizer_json(), payload=file.payload().read_bytes())
    given = parents | {"compressed_model": stored(tmp_path / "file", product, alone)}
    taught = made("student_taught_otherwise", given, small_data, tmp_path / "taught")
    assert taught.metrics["train_optimizer_steps"] == 2
    as_file = made("student_from_merged", given | {"merged_model": parents["expert_model"]}, small_data, tmp_path, 0.5)
    assert as_file.metrics["train_optimizer_steps"] == 2
    assert taught.payload != as_file.payload


def test_nothing_of_the_teacher_is_left_in_a_random_student(
    parents: dict[str, Bundle], small_data: dict[str, Path], tmp_path: Path
) -> None:
    other = parents | {"expert_model": parents["merged_model"]}
    for name, equal in {"student_from_random": True, "student_taught_otherwise": False}.items():
        pair = [
            made(name, given, small_data, tmp_path / str(place)).payload for place, given in enumerate((parents, other))
        ]
        assert (pair[0] == pair[1]) == equal, name


def test_the_rounded_model_is_the_merged_one_without_training(
    parents: dict[str, Bundle], small_data: dict[str, Path], tmp_path: Path
) -> None:
    bundle = stored(tmp_path / "rounded", made("merged_as_ternary", parents, small_data, tmp_path))
    rounded, merged = load_model(bundle), load_model(parents["merged_model"])
    name = "core.0.mlp.down"
    weight = dict(merged.named_modules())[name].weight
    expected = ternarize(weight, 0.5, "tensor").dequantize()
    assert torch.equal(dict(rounded.named_modules())[name].effective_weight(), expected)
    tokens = torch.randint(1, 320, (1, 16), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(rounded(tokens).logits, merged(tokens).logits)


def test_controls_stand_beside_the_chain() -> None:
    for name, phase in PHASES.items():
        assert (phase.name, phase.group, phase.gates) == (name, CONTROLS, ())
        assert "compressed_model" in phase.parents
        assert asdict(phase)["module"] == "training_core.phases.p8_compression.controls"
