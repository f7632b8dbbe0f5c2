"""Merge, ternarise, compress and generate on small real models: what is on disk is what was trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.core.small_data import SHAPE, TRAINING
from tests.nested import nested
from training_core.data.batches import TrainingData
from training_core.data.tokenizer import load_tokenizer
from training_core.distill.distillation import DistillationConfig
from training_core.evaluation.held_out import open_suite
from training_core.evaluation.language_modeling import measure_windows
from training_core.formats.artifact import make_compressible, read_artifact, write_artifact
from training_core.formats.container import ContainerError
from training_core.formats.loading import load_latents, load_model
from training_core.formats.ternary_packing import ternary_product
from training_core.nn.cognate import Cognate, CognateConfig, effective_weight
from training_core.nn.ternary import TernaryLinear, hardness, set_hardness
from training_core.nn.ternary_cognate import make_ternary
from training_core.phases.p1_cognate.config import TrunkConfig, VariantConfig
from training_core.phases.p1_cognate.train import specialise, train_trunk
from training_core.phases.p2_evomerge.evolution import EvolutionConfig
from training_core.phases.p2_evomerge.merge_cognates import merge_cognates
from training_core.phases.p4_bitnet.config import TernaryConfig
from training_core.phases.p4_bitnet.train import train_ternary
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.student import initialise_from, student_config, train_compressed
from training_core.profiles import preset
from training_core.reporting import SilentReporter
from training_core.store.bundle import write_bundle
from training_core.text.generation import generate, sample
from training_core.training.loop import step_generator
from training_core.training.objective import next_token_objective

STUDENT = {
    "student_d_model": 24, "student_num_heads": 2, "student_d_ff": 32, "student_embedding_rank": 12,
    "student_window": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(small_data: dict[str, Path]) -> TrainingData:
    return TrainingData.open(small_data["tokens"], small_data["task_bank"])


@pytest.fixture(scope="module")
def trunk(data: TrainingData) -> Cognate:
    return train_trunk(nested(TrunkConfig, **SHAPE, **TRAINING, steps=40), data, SilentReporter())[0]


def test_merged_model_is_never_worse_than_the_best_parent(
    small_data: dict[str, Path], data: TrainingData, trunk: Cognate, tmp_path: Path
) -> None:
    deep = nested(VariantConfig, **TRAINING, steps=5, latent_steps=1, num_supervision=2)
    plain = nested(VariantConfig, **TRAINING, steps=5, seed=7)
    parents = {
        "a": specialise(trunk, "reasoning", deep, data, SilentReporter())[0],
        "b": specialise(trunk, "speed", plain, data, SilentReporter())[0],
    }
    validation = open_suite(small_data["evaluation_suite"]).validation
    config = EvolutionConfig(generations=1)
    model, metrics = merge_cognates(trunk, parents, config, validation, 8, SilentReporter(), tmp_path)
    assert metrics["bits_per_byte_over_best_parent"] <= 0
    again = measure_windows(model, validation, 8).bits_per_byte()
    assert again == pytest.approx(metrics["validation_bits_per_byte"], rel=1e-6), "settings travel with the weights"
    best = min(measure_windows(p, validation, 8).bits_per_byte() for p in parents.values())
    assert metrics["validation_bits_per_byte_best_parent"] == pytest.approx(best, rel=1e-9)


def test_ternary_bundle_decodes_to_the_training_graph(data: TrainingData, trunk: Cognate, tmp_path: Path) -> None:
    config = nested(TernaryConfig, **TRAINING, steps=4)
    before = {n: t.clone() for n, t in trunk.state_dict().items()}
    model, _ = train_ternary(trunk, config, data, SilentReporter())
    assert all(torch.equal(t, before[n]) for n, t in trunk.state_dict().items()), "the parent is left as it was"
    product = ternary_product(model, config.quantization, data.tokenizer_json)
    bundle = write_bundle(
        tmp_path / "t",
        kind=product.kind,
        model_config=product.model_config,
        tensors=product.tensors,
        tokenizer_json=product.tokenizer_json,
        payload=product.payload,
    )
    decoded, latents = load_model(bundle), load_latents(bundle)
    tokens = torch.randint(0, 320, (2, 20))
    with torch.no_grad():
        expected = model.eval()(tokens).logits
        assert torch.equal(decoded(tokens).logits, expected)
        assert torch.equal(latents(tokens).logits, expected)
    trained = {n: m for n, m in model.named_modules() if isinstance(m, TernaryLinear)}
    assert len(trained) == 3 * 7 + 3 * 2, (
        "every hidden matrix: attention and SwiGLU of 3 blocks, 3 factorised projections"
    )
    for name, module in trained.items():
        weight = effective_weight(decoded.get_submodule(name))
        assert torch.equal(weight, module.effective_weight())
        assert weight.unique().numel() <= 3
    matrices = sum(m.weight.numel() for m in trained.values())
    rest = sum(p.numel() for p in model.parameters()) - matrices
    assert bundle.model_bytes() < matrices / 5 + 2 * rest + 20_000


class First(SilentReporter):
    """The metrics of the first step."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.values = self.values or {name.partition("/")[2]: value for name, value in values.items()}


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 KL(teacher || student) at temperature T, a mean over positions, in a naive loop."""
    total = 0.0
    for own, its in zip(student.flatten(0, 1).double(), teacher.flatten(0, 1).double(), strict=True):
        p, q = (its / temperature).softmax(-1), (own / temperature).softmax(-1)
        total += float((p * (p / q).log()).sum())
    return temperature**2 * total / (student.shape[0] * student.shape[1])


@torch.no_grad()
def test_the_student_learns_from_text_and_teacher_by_their_weights(data: TrainingData, trunk: Cognate) -> None:
    """The first loss of phase 8 by hand: .8 of the cross-entropy and .2 of the teacher's divergence at T = 3."""
    distilled = {"weight": 0.2, "temperature": 3.0}
    config = nested(CompressionConfig, **TRAINING, **STUDENT, steps=1, warmup_fraction=0.0)
    config = config.model_copy(update={"distillation": DistillationConfig(**distilled)})
    first = First()
    with torch.enable_grad():
        train_compressed(trunk, config, data, first)
    torch.manual_seed(config.training.seed)
    student = Cognate(student_config(config, trunk.config))
    initialise_from(student, trunk)
    make_compressible(student, config.student.threshold, config.student.granularity)
    set_hardness(student, hardness(0, 1, config.student.hardening_fraction))
    batch = data.batch(config.mix, 4, 65, step_generator(config.training.seed, 0))
    own, its = student(batch[:, :-1]).logits, trunk(batch[:, :-1]).logits
    entropy = float(torch.nn.functional.cross_entropy(own.flatten(0, 1), batch[:, 1:].flatten()))
    apart = divergence(own, its, 3.0)
    assert first.values["cross_entropy"] == pytest.approx(entropy, rel=1e-4)  # float32
    assert first.values["distillation"] == pytest.approx(apart, rel=1e-3)
    assert first.values["loss"] == pytest.approx(0.8 * entropy + 0.2 * apart, rel=1e-4)
    assert abs(divergence(own, its, 1.0) - apart) > 0.1 * apart, "the temperature matters here"


@torch.no_grad()
def test_the_ternary_model_learns_from_text_and_itself_by_their_weights(data: TrainingData, trunk: Cognate) -> None:
    """The same of phase 4, whose teacher is the model in full precision."""
    config = nested(TernaryConfig, **TRAINING, steps=1, hardening_fraction=0.0, warmup_fraction=0.0)
    config = config.model_copy(update={"distillation": DistillationConfig(weight=0.25, temperature=2.0)})
    first = First()
    with torch.enable_grad():
        train_ternary(trunk, config, data, first)
    student = copy.deepcopy(trunk)
    make_ternary(student, config.quantization)
    set_hardness(student, 1.0)
    batch = data.batch(config.mix, 4, 65, step_generator(config.training.seed, 0))
    apart = divergence(student(batch[:, :-1]).logits, trunk(batch[:, :-1]).logits, 2.0)
    own = next_token_objective(student, batch, None, torch.Generator())
    assert first.values["distillation"] == pytest.approx(apart, rel=1e-3)  # float32
    assert first.values["loss"] == pytest.approx(0.75 * float(own.loss) + 0.25 * apart, rel=1e-4)


def test_artifact_is_the_student(data: TrainingData, trunk: Cognate) -> None:
    config = nested(CompressionConfig, **TRAINING, **STUDENT, steps=6, student_num_loops=2)
    payload, student, _ = train_compressed(trunk, config, data, SilentReporter())
    artifact = read_artifact(payload)
    assert artifact.tokenizer_json == data.tokenizer_json or (
        load_tokenizer(artifact.tokenizer_json).get_vocab() == load_tokenizer(data.tokenizer_json).get_vocab()
    )
    assert artifact.model.config == student.config
    tokens = torch.randint(0, 320, (2, 20))
    with torch.no_grad():
        difference = (artifact.model(tokens).logits - student.eval()(tokens).logits).abs().max()
    assert difference < 0.05, "matrices are exact; norms are rounded to 8 bits"
    for name, module in student.named_modules():
        if hasattr(module, "threshold"):
            assert torch.equal(effective_weight(artifact.model.get_submodule(name)), module.effective_weight())
    for cut in (0, 10, len(payload) // 2, len(payload) - 1):
        with pytest.raises(ContainerError):
            read_artifact(payload[:cut])
    trained_halting = train_compressed(trunk, config, data, SilentReporter())[1]
    with torch.no_grad():
        trained_halting.halt_head.bias += 1
    with pytest.raises(ValueError, match=r"halt_head.bias was trained"):
        write_artifact(trained_halting, data.tokenizer_json, config.student.threshold, config.student.granularity)


def test_the_25m_student_fits_its_file(data: TrainingData) -> None:
    """Random weights have the highest entropy there is for the ternary rule; its real tokenizer adds at most 16 kB."""
    config = preset("forge_25m", "compressed_model")
    teacher = CognateConfig(vocab_size=6144, max_seq_len=2048)
    torch.manual_seed(0)
    student = Cognate(student_config(config, teacher))  # type: ignore[arg-type]
    make_compressible(student, 0.5, "tensor")
    payload = write_artifact(student, data.tokenizer_json, 0.5, "tensor")
    assert len(payload) + 16_000 < 400_000


def test_the_student_starts_from_its_teacher(trunk: Cognate) -> None:
    """A student of the teacher's width copies its table and last blocks; a low rank is the best approximation of it."""
    same = {"student_d_model": 32, "student_num_heads": 2, "student_d_ff": 48, "student_window": 16}
    full = Cognate(student_config(nested(CompressionConfig, **same, student_embedding_rank=0), trunk.config))
    initialise_from(full, trunk)
    assert torch.equal(full.embedding.weight, trunk.embedding.weight)
    assert torch.equal(full.core[0].mlp.up.weight, trunk.core[-1].mlp.up.weight)
    low = Cognate(student_config(nested(CompressionConfig, **same, student_embedding_rank=12), trunk.config))
    initialise_from(low, trunk)
    assert low.embedding_out is not None
    rebuilt = low.embedding.weight @ low.embedding_out.weight.T
    singular = torch.linalg.svdvals(trunk.embedding.weight)
    error = (rebuilt - trunk.embedding.weight).norm()
    assert error.item() == pytest.approx(singular[12:].norm().item(), rel=1e-4)  # Eckart-Young


def test_generation_is_seeded_and_equals_argmax_at_zero_temperature(data: TrainingData, trunk: Cognate) -> None:
    tokenizer = load_tokenizer(data.tokenizer_json)
    first = "".join(generate(trunk, tokenizer, "The river", max_tokens=12, seed=1))
    assert first == "".join(generate(trunk, tokenizer, "The river", max_tokens=12, seed=1))
    greedy = "".join(generate(trunk, tokenizer, "The river", max_tokens=5, temperature=0))
    ids = [0, *tokenizer.encode("The river").ids]
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(trunk(torch.tensor([ids])).logits[0, -1].argmax()))
    assert greedy == tokenizer.decode(ids)[len("The river") :]
    with pytest.raises(ValueError, match="top_p: must be more than 0"):
        list(generate(trunk, tokenizer, "x", top_p=0))


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits.expand(600, -1), 1.0, 0.75, generator).tolist()
    assert set(drawn) == {0, 1}
    assert abs(drawn.count(0) / 600 - 0.625) < 3 * (0.625 * 0.375 / 600) ** 0.5
    assert sample(logits[None], 0, 1.0, generator).tolist() == [0]
