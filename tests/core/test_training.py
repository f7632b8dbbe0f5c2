"""The loop: learning, resuming after kill -9 bit for bit, diverging with a clear error; objectives against
references."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.core.small_data import SHAPE, TRAINING
from tests.killed import killed_at_each, run_apart
from tests.nested import nested
from training_core.data.batches import MixConfig, TrainingData
from training_core.data.tokenizer import load_tokenizer
from training_core.distill.distillation import distil, distillation_loss
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phases.p1_cognate.config import FirstStageConfig, TrunkConfig, VariantConfig
from training_core.phases.p1_cognate.train import specialise, train_trunk
from training_core.reporting import Figure, Reporter, SilentReporter
from training_core.training.loop import TrainingDivergedError, train
from training_core.training.objective import next_token_objective


def train_and_keep(reporter: Reporter, folder: Path, data: dict[str, Path]) -> None:
    config = nested(TrunkConfig, **SHAPE, **TRAINING, steps=6, cycles=2, latent_steps=1, num_supervision=2)
    model, _ = train_trunk(config, TrainingData.open(data["tokens"], data["task_bank"]), reporter, folder / "state")
    save_file(model.state_dict(), folder / "tensors")


def test_killed_and_resumed_ends_bit_for_bit_the_same(small_data: dict[str, Path], tmp_path: Path) -> None:
    assert run_apart(train_and_keep, tmp_path / "whole", data=small_data).status == 0
    killed, resumed = killed_at_each(train_and_keep, tmp_path / "broken", ["trunk 4"], data=small_data)
    assert killed.told == [f"trunk {step}" for step in (1, 2, 3, 4)]
    # the resumed run starts after the last checkpoint, not at the beginning
    assert resumed.told == [f"trunk {step}" for step in (4, 5, 6)]
    first, second = load_file(tmp_path / "whole" / "tensors"), load_file(tmp_path / "broken" / "tensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def train_in_stages(reporter: Reporter, folder: Path, data: dict[str, Path]) -> None:
    mix = MixConfig(text_share=0, arithmetic_share=1, logic_share=0, needle_share=0)
    first = FirstStageConfig(steps=3, batch_size=2, seq_len=16, mix=mix)
    config = nested(TrunkConfig, **SHAPE, **TRAINING, steps=4).model_copy(update={"first": first})
    training = TrainingData.open(data["tokens"], data["task_bank"])
    model, result = train_trunk(config, training, reporter, folder / "state")
    assert (result.optimizer_steps, result.tokens) == (3 + 4, 3 * 2 * 16 + 4 * 4 * 64)
    save_file(model.state_dict(), folder / "tensors")


def test_the_first_stage_comes_before_the_text_and_resumes_too(small_data: dict[str, Path], tmp_path: Path) -> None:
    assert run_apart(train_in_stages, tmp_path / "whole", data=small_data).status == 0
    for name, kill, told in (
        ("early", "first stage 2", ["first stage 2", "first stage 3", "trunk 1", "trunk 2", "trunk 3", "trunk 4"]),
        ("late", "trunk 2", ["trunk 2", "trunk 3", "trunk 4"]),
    ):
        _, resumed = killed_at_each(train_in_stages, tmp_path / name, [kill], data=small_data)
        assert resumed.told == told
        assert (tmp_path / "whole" / "tensors").read_bytes() == (tmp_path / name / "tensors").read_bytes()
    config = nested(TrunkConfig, **SHAPE, **TRAINING, steps=4)
    plain, _ = train_trunk(config, TrainingData.open(small_data["tokens"], small_data["task_bank"]), SilentReporter())
    both = load_file(tmp_path / "whole" / "tensors")
    assert any(not torch.equal(both[name], value) for name, value in plain.state_dict().items())


class Recorder(SilentReporter):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self.figures: dict[str, Figure] = {}

    def metrics(self, step: int, values: object) -> None:
        self.values.append(dict(values))  # type: ignore[call-overload]

    def figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure


def test_training_learns_and_reports(small_data: dict[str, Path]) -> None:
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    recorder = Recorder()
    config = nested(TrunkConfig, **SHAPE, **TRAINING, steps=60)
    started = time.monotonic()
    model, result = train_trunk(config, data, recorder)
    assert result.tokens == 60 * 4 * 64
    assert 0 < result.seconds <= time.monotonic() - started
    first, last = recorder.values[0]["trunk/cross_entropy"], recorder.values[-1]["trunk/cross_entropy"]
    assert first > 5.0  # about ln 320
    assert last < 0.75 * first
    assert set(recorder.figures["trunk"].series) == {"loss", "smoothed"}
    assert not model.training


def test_specialists_differ_from_the_trunk_and_from_each_other(small_data: dict[str, Path]) -> None:
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    trunk, _ = train_trunk(nested(TrunkConfig, **SHAPE, **TRAINING, steps=2), data, SilentReporter())
    deep = nested(
        VariantConfig, **TRAINING, steps=2, latent_steps=1, num_supervision=2, halt_threshold=0.5, arithmetic_share=1
    )  # type: ignore[arg-type]
    plain = nested(VariantConfig, **TRAINING, steps=2)
    reasoning, result = specialise(trunk, "reasoning", deep, data, SilentReporter())
    speed, _ = specialise(trunk, "speed", plain, data, SilentReporter())
    assert result.optimizer_steps == 4
    assert (reasoning.config.latent_steps, speed.config.latent_steps) == (1, 0)
    weights = [m.state_dict()["core.0.mlp.up.weight"] for m in (trunk, reasoning, speed)]
    assert all(
        not torch.equal(a, b) for a, b in ((weights[0], weights[1]), (weights[0], weights[2]), (weights[1], weights[2]))
    )


def test_divergence_is_an_error(small_data: dict[str, Path]) -> None:
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    config = nested(TrunkConfig, **SHAPE, **TRAINING, steps=20, muon_lr=1e30, adamw_lr=1e30)
    with pytest.raises(TrainingDivergedError, match="lower muon_lr"):
        train_trunk(config, data, SilentReporter())


def test_sequence_longer_than_the_model_is_an_error(small_data: dict[str, Path]) -> None:
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    with pytest.raises(ValueError, match="seq_len = 65 exceeds max_seq_len = 64"):
        train_trunk(nested(TrunkConfig, **SHAPE, **TRAINING | {"seq_len": 65}, steps=1), data, SilentReporter())


def test_objective_by_hand() -> None:
    """Cross-entropy plus half the binary cross-entropy of halting against the correctness of the current argmax."""
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=300, **SHAPE))  # type: ignore[arg-type]
    torch.nn.init.normal_(model.halt_head.weight)
    batch = torch.randint(0, 300, (2, 11))
    result = next_token_objective(model, batch, None, torch.Generator())
    h = model.encode(batch[:, :-1])
    y = model.supervise(h, model.start(h)).y.detach()
    p = model.logits(y).softmax(-1).detach()
    cross_entropy = halting = 0.0
    for b in range(2):
        for t in range(10):
            target = int(batch[b, t + 1])
            cross_entropy -= float(p[b, t, target].log()) / 20
            q = torch.sigmoid(model.halt(y)[b, t].detach())
            right = int(p[b, t].argmax()) == target
            halting -= float((q if right else 1 - q).log()) / 20
    assert result.loss.item() == pytest.approx(cross_entropy + 0.5 * halting, rel=1e-5)
    assert result.carry is not None
    assert not result.carry.y.requires_grad
    following = next_token_objective(model, batch, result.carry, torch.Generator())
    assert following.loss.item() != result.loss.item()


def test_halting_gradient_never_reaches_the_model() -> None:
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=300, **SHAPE))  # type: ignore[arg-type]
    torch.nn.init.normal_(model.halt_head.weight)
    batch = torch.randint(0, 300, (1, 9))
    h = model.encode(batch)
    model.halt(model.supervise(h, model.start(h)).y).sum().backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {"halt_head.weight", "halt_head.bias"}


def test_distillation_loss_by_hand_and_by_gradient() -> None:
    torch.manual_seed(0)
    student = torch.randn(1, 1, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 1, 5, dtype=torch.float64)
    p, q = teacher.softmax(-1).flatten(), student.softmax(-1).flatten()
    by_hand = sum(p[i] * (p[i].log() - q[i].log()) for i in range(5))
    loss = distillation_loss(student, teacher, 1.0)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-12)
    loss.backward()
    assert student.grad is not None
    assert torch.allclose(
        student.grad.flatten(), (q - p).detach(), atol=1e-14
    )  # d KL / d logits = softmax(s) - softmax(t)
    assert float(distillation_loss(teacher, teacher, 3.0)) == pytest.approx(0.0, abs=1e-15)
    soft = distillation_loss(student, teacher, 2.0)
    halves = distillation_loss(student / 2, teacher / 2, 1.0)
    assert soft.item() == pytest.approx(4 * halves.item(), rel=1e-12)


def test_distil_mixes_the_losses() -> None:
    torch.manual_seed(0)
    config = CognateConfig(vocab_size=300, **SHAPE)  # type: ignore[arg-type]
    student, teacher = Cognate(config), Cognate(config)
    batch = torch.randint(0, 300, (1, 9))
    own = next_token_objective(student, batch, None, torch.Generator())
    with torch.no_grad():
        divergence = distillation_loss(own.logits, teacher(batch[:, :-1]).logits, 1.0)
    mixed = distil(next_token_objective, teacher, 0.25, 1.0)(student, batch, None, torch.Generator())
    assert mixed.loss.item() == pytest.approx(0.75 * own.loss.item() + 0.25 * divergence.item(), rel=1e-5)
    itself = distil(next_token_objective, student, 1.0, 1.0)(student, batch, None, torch.Generator())
    assert itself.loss.item() == pytest.approx(0.0, abs=1e-5)


def test_parts_of_a_schedule_share_it_and_draw_other_batches(small_data: dict[str, Path]) -> None:
    """Two runs of five steps: the learning rate falls over all ten, each begins with a warm-up of its own, and no batch
    comes twice."""
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    config = nested(TrunkConfig, **SHAPE, **TRAINING | {"warmup_fraction": 0.4, "decay_fraction": 1.0}, steps=5)
    factors: list[list[float]] = []
    batches: list[bytes] = []

    class Factors(SilentReporter):
        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            factors[-1] += [value for name, value in values.items() if name.endswith("/lr_factor")]

    def draw(generator: torch.Generator) -> torch.Tensor:
        batch = data.batch(config.mix, 2, 17, generator)
        batches.append(batch.numpy().tobytes())
        return batch

    size = load_tokenizer(data.tokenizer_json).get_vocab_size()
    model = Cognate(CognateConfig(vocab_size=size, **SHAPE))
    for before in (0, 5):
        factors.append([])
        train(model, next_token_objective, draw, config.training, Factors(), part=(before, 10))
    assert factors[0] == pytest.approx([0.5, 9 / 11, 8 / 11, 7 / 11, 6 / 11])
    assert factors[1] == pytest.approx([5 / 11, 4 / 11, 3 / 11, 2 / 11, 1 / 11])
    assert len(set(batches)) == 10
