"""Low-rank adapters: against peft on dense layers, inside the quantiser on ternary ones, merged, dropped, resumed."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.test_baking import LEARNING, PROMPT, drawn, make_model, texts
from training_core.distill.lora import LowRank, hidden_linears, low_rank
from training_core.distill.prompt_baking import BakingConfig, bake, measure_baking
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy, ternarize, ternary_modules
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.reporting import SilentReporter

RANK, ALPHA = 3, 5.0


class Dense(nn.Module):
    """Two linear layers and an embedding that is not adapted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.up, self.down = nn.Embedding(9, 6), nn.Linear(6, 10), nn.Linear(10, 4, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.down(F.silu(self.up(self.embedding(tokens))))
        return found


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def ternary_model() -> Cognate:
    model = make_model()
    make_ternary(model, TernarySettings())
    return model


def nonzero(adapters: list[LowRank]) -> None:
    with torch.no_grad():
        for adapter in adapters:
            adapter.B.normal_(std=0.1, generator=seeded())


def test_outputs_gradients_and_merged_weights_are_pefts() -> None:
    ours, tokens = Dense(), torch.tensor([[1, 4, 8], [0, 2, 2]])
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["up", "down"])  # type: ignore[arg-type]
    theirs = peft.get_peft_model(Dense(), config)  # type: ignore[arg-type]
    with low_rank(ours, RANK, ALPHA, seeded()) as adapters:
        nonzero(adapters)
        layers = [theirs.base_model.model.up, theirs.base_model.model.down]
        for adapter, layer in zip(adapters, layers, strict=True):
            layer.lora_A["default"].weight.data = adapter.A.detach().clone()
            layer.lora_B["default"].weight.data = adapter.B.detach().clone()
        outputs = ours(tokens), theirs(tokens)
        assert torch.allclose(*outputs, atol=1e-6)
        assert not torch.allclose(outputs[0], Dense()(tokens), atol=1e-2), "the adapters do something"
        for output in outputs:
            output.square().sum().backward()
        for adapter, layer in zip(adapters, layers, strict=True):
            for mine, other in (
                (adapter.A, layer.lora_A["default"].weight),
                (adapter.B, layer.lora_B["default"].weight),
            ):
                assert mine.grad is not None
                assert mine.grad.abs().max() > 0
                assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
        trained = {n for n, p in ours.named_parameters() if p.requires_grad}
        assert len(trained) == 4 == sum(p.requires_grad for p in theirs.parameters())
    merged = theirs.merge_and_unload()  # type: ignore[operator]
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, merged.state_dict()[name], atol=1e-6), name
    assert torch.allclose(ours(tokens), outputs[0], atol=1e-6)


def test_adapters_start_as_pefts_do() -> None:
    """B = 0, and A uniform in +- 1 / sqrt(in): Kaiming's bound with slope sqrt 5."""
    model = nn.Sequential()
    model.add_module("wide", nn.Linear(400, 60))
    before = model.wide.weight.detach().clone()
    with low_rank(model, 50, 16.0, seeded()) as adapters:
        assert torch.equal(model.wide.weight, before)
        a, bound = adapters[0].A, 1 / math.sqrt(400)
        assert not adapters[0].B.any()
        assert a.abs().max() <= bound
        assert a.abs().max() > 0.99 * bound
        assert abs(a.std().item() - bound / math.sqrt(3)) < 0.02 * bound  # 20000 draws: 3 sigma are .006 of it
        assert adapters[0].scale == 16 / 50


def test_a_ternary_layer_ternarises_the_sum() -> None:
    """Codes and scale are those of W0 + (alpha / rank) B A; gradients reach A and B by the straight-through rule alone;
    and the branch beside the quantiser that peft would add is another function."""
    model = ternary_model()
    name, layer = next((n, m) for n, m in ternary_modules(model) if isinstance(m, nn.Linear))
    w0, x = layer.weight.detach().clone(), torch.randn(5, layer.in_features, generator=seeded())
    with low_rank(model, RANK, ALPHA, seeded()) as adapters:
        nonzero(adapters)
        adapter = adapters[list(hidden_linears(model)).index(name)]
        product = (ALPHA / RANK) * (adapter.B @ adapter.A)
        expected = F.linear(x, ternarize((w0 + product).detach()).dequantize())
        output = layer(x)
        assert torch.allclose(output, expected, atol=1e-6)
        beside = F.linear(x, ternarize(w0).dequantize() + product.detach())
        assert (output - beside).abs().max() > 0.05
        output.square().sum().backward()
        on_weight = 2 * output.detach().T @ x  # the gradient of the effective weight, passed straight to the latent
        assert adapter.A.grad is not None
        assert adapter.B.grad is not None
        assert torch.allclose(adapter.A.grad, (ALPHA / RANK) * adapter.B.detach().T @ on_weight, rtol=1e-4, atol=1e-5)
        assert torch.allclose(adapter.B.grad, (ALPHA / RANK) * on_weight @ adapter.A.detach().T, rtol=1e-4, atol=1e-5)
        assert all(p.grad is None for n, p in model.named_parameters() if not n.endswith((".A", ".B")))
        inside = model(torch.arange(1, 13)[None]).logits
    assert torch.equal(model(torch.arange(1, 13)[None]).logits, inside), "merged, the function is the same bit for bit"
    assert torch.equal(inference_copy(model)(torch.arange(1, 13)[None]).logits, inside)
    assert torch.allclose(layer.weight, w0 + product, atol=1e-7)


def test_names_parameters_and_flags_are_restored() -> None:
    model = ternary_model()
    model.latent.requires_grad_(False)
    parameters = {n: (id(p), p.requires_grad) for n, p in model.named_parameters()}
    keys, kind = list(model.state_dict()), type(model.core[0])
    with low_rank(model, 2, 4.0, seeded()) as adapters:
        assert len(adapters) == len(hidden_linears(model)) == len(list(ternary_modules(model)))
        assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"A", "B"}
    assert {n: (id(p), p.requires_grad) for n, p in model.named_parameters()} == parameters
    assert (list(model.state_dict()), type(model.core[0])) == (keys, kind)


def test_an_error_leaves_the_weights_as_they_were() -> None:
    model = ternary_model()
    before = copy.deepcopy(model.state_dict())

    def fail() -> None:
        with low_rank(model, 2, 4.0, seeded()) as adapters:
            nonzero(adapters)
            raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        fail()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
    assert all(p.requires_grad for p in model.parameters())


def test_ranks_that_cannot_be() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"rank = 33 exceeds what .* can have"), low_rank(model, 33, 1.0, seeded()):
        pass
    with pytest.raises(ValueError, match="no hidden linear layer"), low_rank(nn.Embedding(3, 3), 1, 1.0, seeded()):
        pass
    with low_rank(model, 0, 1.0, seeded()) as adapters:
        assert adapters == []
        assert all(p.requires_grad for p in model.parameters())


# -- baking with adapters --------------------------------------------------------------------------------------------

LOW_RANK = LEARNING | {"rank": 4, "lora_alpha": 8.0, "steps": 30, "text_weight": 0.0}


def test_baking_with_adapters_learns_and_moves_hidden_matrices_by_their_rank() -> None:
    teacher = inference_copy(ternary_model())
    student = ternary_model()
    before = copy.deepcopy(student.state_dict())
    trajectories = drawn(teacher, 60)
    config = BakingConfig(**LOW_RANK)  # type: ignore[arg-type]
    bake(teacher, student, PROMPT, trajectories[:40], None, config, SilentReporter())
    measure = measure_baking(teacher, inference_copy(student), PROMPT, trajectories[40:])
    assert measure.strength > 0.5
    adapted = {f"{name}.weight" for name in hidden_linears(student)}
    for name, tensor in student.state_dict().items():
        moved = (tensor - before[name]).double()
        if name not in adapted:
            assert not moved.any(), name
            continue
        singular = torch.linalg.svdvals(moved)
        assert singular[3] > 1e-5, name
        assert singular[4] < 1e-6 * max(1.0, float(singular[0])), f"{name}: rank 4 and float32 rounding"


class Interrupted(RuntimeError):
    """Stands for a stop in the middle."""


class StopsAt(SilentReporter):
    """Counts steps and stops the run at one of them."""

    def __init__(self, step: int) -> None:
        self.stop, self.steps = step, list[int]()

    def progress(self, done: int, total: int, label: str) -> None:
        self.steps.append(done)
        if done == self.stop:
            raise Interrupted


def test_a_run_with_adapters_resumes_bit_for_bit(tmp_path: Path) -> None:
    teacher = make_model()
    trajectories = drawn(teacher, 12)
    config = BakingConfig(**LOW_RANK | {"steps": 8, "checkpoint_interval_s": 0, "text_weight": 1.0})  # type: ignore[arg-type]
    found = []
    for stop, folder in ((0, "undisturbed"), (5, "stopped"), (0, "stopped")):
        student, reporter = copy.deepcopy(teacher), StopsAt(stop)
        try:
            bake(teacher, student, PROMPT, trajectories, texts, config, reporter, tmp_path / folder)
        except Interrupted:
            assert stop == 5
        found.append((reporter.steps, student.state_dict()))
    assert found[0][0] == list(range(1, 9))
    assert found[2][0] == list(range(5, 9)), "the last resume point is that of step 4"
    assert all(torch.equal(t, teacher.state_dict()[n]) for n, t in found[1][1].items()), "stopped: as it was"
    assert all(torch.equal(t, found[2][1][n]) for n, t in found[0][1].items())
    assert any(not torch.equal(t, teacher.state_dict()[n]) for n, t in found[0][1].items())
