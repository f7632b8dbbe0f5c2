"""Prompt baking: the loss against a naive loop without padding, exactness where the prompt cannot be seen, a table
whose baked optimum is known, learning, and resuming after kill -9."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core.small_data import SHAPE
from tests.core.test_baking_divergences import KINDS, naive_divergence
from tests.killed import killed_at_each, run_apart
from tests.oracles.prompted_bigram import PROMPT_TOKEN, SIZE, PromptedBigram, baked_table
from training_core.distill.divergences import Divergence, divergence
from training_core.distill.prompt_baking import BakingConfig, BakingMeasure, BakingObjective, bake, measure_baking
from training_core.distill.trajectories import SamplingConfig, Trajectory, sample_continuations
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.ternary import set_hardness
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.reporting import Reporter, SilentReporter

VOCABULARY = 300


def make_model(seed: int = 0, **changes: object) -> Cognate:
    """A random model whose large embeddings make it sensitive to what it reads."""
    torch.manual_seed(seed)
    model = Cognate(CognateConfig(vocab_size=VOCABULARY, **SHAPE | changes))  # type: ignore[arg-type]
    torch.nn.init.normal_(model.embedding.weight, std=0.4)
    torch.nn.init.normal_(model.halt_head.weight)
    for block in model.prelude:
        if block.residual is not None:
            torch.nn.init.normal_(block.residual)
    return model.eval()


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(1, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPT = ids(8, 99)


def drawn(model: Cognate, count: int, max_tokens: int = 8) -> list[Trajectory]:
    """Trajectories from the prompted model, with prefixes of 0 to 3 tokens."""
    prefixes = [ids(number % 4, number) for number in range(count)]
    config = SamplingConfig(max_tokens=max_tokens)
    return sample_continuations(model, PROMPT, prefixes, config, torch.Generator().manual_seed(3))


def texts(generator: torch.Generator) -> Tensor:
    return torch.randint(1, VOCABULARY, (4, 13), generator=generator)


# -- the loss --------------------------------------------------------------------------------------------------------


def rows_alone(teacher: Cognate, trajectories: Sequence[Trajectory]) -> list[tuple[list[int], dict[int, Tensor]]]:
    """Of every trajectory: the student's tokens, and by the student's position the prompted teacher's logits of the own
    continuation tokens. One row at a time, without padding."""
    found = []
    for t in trajectories:
        given = [0, *t.history, *PROMPT, *t.prefix]
        answers = {}
        for place, token in enumerate(t.continuation):
            if not t.own or t.own[place]:
                with torch.no_grad():
                    answers[t.num_given + place] = teacher(torch.tensor([given])).logits[0, -1]
            given.append(token)
        found.append(([0, *t.history, *t.prefix, *t.continuation], answers))
    return found


FOREIGN = [
    Trajectory((4,), (9, 8, 7, 6), (True, False, False, True)),
    Trajectory((), (5, 5, 5), (False, True, True), (9, 2, 3)),
]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_equals_a_naive_loop_without_padding(kind: Divergence) -> None:
    """Two supervision steps, every term: divergence, anchor on text, halting of both."""
    teacher, student = (make_model(seed, num_supervision=2, latent_steps=1) for seed in (0, 1))
    trajectories = [*drawn(teacher, 5), Trajectory((4,), (9,)), *FOREIGN]
    config = BakingConfig(divergence=kind, beta=0.3, temperature=1.5, text_weight=0.7)
    objective = BakingObjective(teacher, PROMPT, trajectories, texts, config)
    batch, seed = torch.tensor([2, 5, 0, 2, 6, 7]), torch.Generator().manual_seed(8)
    results = [objective(student, batch, None, seed)]
    results.append(objective(student, batch, results[0].carry, seed))
    rows = rows_alone(teacher, [trajectories[i] for i in batch.tolist()])
    text = texts(torch.Generator().manual_seed(8))
    for number, result in enumerate(results):
        left, halting, count = 0.0, 0.0, 0
        for tokens, answers in rows:
            y = attended(student, torch.tensor([tokens]), number + 1)
            for position, answer in answers.items():
                scores = student.logits(y)[0, position]
                left += 1.5**2 * naive_divergence(kind, scores.double() / 1.5, answer.double() / 1.5, 0.3)
                halting += halt_loss(student, y[0, position], scores, tokens[position + 1])
                count += 1
        drift = text_halting = 0.0
        y = attended(student, text[:, :-1], number + 1)
        with torch.no_grad():
            anchor = teacher(text[:, :-1]).logits
        for b in range(4):
            for s in range(12):
                scores = student.logits(y)[b, s]
                drift += naive_divergence("forward_kl", scores.double(), anchor[b, s].double(), 0.3) / 48
                text_halting += halt_loss(student, y[b, s], scores, int(text[b, s + 1])) / 48
        expected = left / count + 0.5 * halting / count + 0.7 * (drift + 0.5 * text_halting)
        assert result.loss.item() == pytest.approx(expected, rel=1e-4)  # float32
        assert result.metrics[kind].item() == pytest.approx(left / count, rel=1e-4)
        assert result.metrics["text_kl"].item() == pytest.approx(drift, rel=1e-4)


def attended(student: Cognate, tokens: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        h = student.encode(tokens)
        carry = student.start(h)
        for _ in range(steps):
            carry = student.supervise(h, carry)
    return carry.y


def halt_loss(student: Cognate, y: Tensor, scores: Tensor, target: int) -> float:
    q = float(student.halt(y).sigmoid().detach())
    return -math.log(q if int(scores.argmax()) == target else 1 - q)


def test_halting_does_not_shape_the_student_and_the_teacher_gets_no_gradient() -> None:
    teacher, student = make_model(0), make_model(1)
    objective = BakingObjective(teacher, PROMPT, drawn(teacher, 4), texts, BakingConfig())
    gradients = []
    for _ in range(2):
        objective(student, torch.tensor([0, 1, 3]), None, torch.Generator()).loss.backward()  # type: ignore[no-untyped-call]
        gradients.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
        student.zero_grad()
        torch.nn.init.normal_(student.halt_head.weight)  # other halting losses, the same loss of the prediction
    differing = {n for n in gradients[0] if not torch.equal(gradients[0][n], gradients[1][n])}
    assert differing == {"halt_head.weight", "halt_head.bias"}
    assert gradients[0]["embedding.weight"].abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


# -- measuring -------------------------------------------------------------------------------------------------------


def test_a_prompt_out_of_sight_changes_nothing() -> None:
    """Three layers of window 4 see 9 tokens back; behind a prefix of 12 the prompt only shifts the positions, and
    rotary attention is relative where there are no persistent tokens. In float64 the divergence is rounding; with a
    shorter prefix it is not."""
    model = make_model(memory_layers=[], conv_kernel=0, window=4, num_persistent=0).double()
    student = copy.deepcopy(model)
    far = [Trajectory(tuple(ids(12, n)), tuple(ids(1 + n % 5, 50 + n))) for n in range(20)]
    near = [Trajectory(t.prefix[:2], t.continuation) for t in far]
    hidden = measure_baking(model, student, PROMPT, far)
    assert abs(hidden.kl_before) < 1e-12
    assert float(hidden.before_N.abs().max()) < 1e-12
    assert float(hidden.after_N.abs().max()) < 1e-12
    with pytest.raises(ValueError, match="a baking strength is undefined"):
        _ = hidden.strength
    assert measure_baking(model, student, PROMPT, near).kl_before > 1e-4


def test_measure_equals_a_naive_loop() -> None:
    teacher, student = make_model(0), make_model(1)
    trajectories = [*drawn(teacher, 16, 4), *FOREIGN]  # more than one batch of rows
    found = measure_baking(teacher, student, PROMPT, trajectories)
    sums = {"before": 0.0, "after": 0.0}
    for tokens, answers in rows_alone(teacher, trajectories):
        for name, model in (("before", teacher), ("after", student)):
            with torch.no_grad():
                scores = model(torch.tensor([tokens])).logits[0]
            sums[name] += sum(
                naive_divergence("forward_kl", scores[position].double(), answer.double(), 0)
                for position, answer in answers.items()
            )
    assert found.tokens_N.tolist() == [len(t.continuation) for t in trajectories[:16]] + [2, 2]
    count = found.tokens_N.sum().item()
    assert found.kl_before == pytest.approx(sums["before"] / count, rel=1e-4)
    assert found.kl_after == pytest.approx(sums["after"] / count, rel=1e-4)
    assert found.strength == pytest.approx(1 - sums["after"] / sums["before"], rel=1e-4)


def test_strength_by_hand() -> None:
    measure = BakingMeasure(torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([2.0, 6.0]))
    assert measure.metrics() == {"baking_kl_before": 0.5, "baking_kl_after": 0.125, "baking_strength": 0.75}
    # of four equally likely resamples two are mixed; the others have 1 - 0.5 / 3 and 1 - 0.5 / 1
    interval = measure.strength_estimate()
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.75, 0.5, 1 - 0.5 / 3))
    nothing = BakingMeasure(torch.tensor([1e-6]), torch.tensor([0.0]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="a baking strength is undefined"):
        nothing.strength_estimate()


def test_strength_counts_from_another_start() -> None:
    teacher, start, student = (make_model(seed) for seed in (0, 1, 2))
    trajectories = drawn(teacher, 6)
    found = measure_baking(teacher, student, PROMPT, trajectories, start)
    assert torch.equal(found.before_N, measure_baking(teacher, start, PROMPT, trajectories).after_N)
    assert torch.equal(found.after_N, measure_baking(teacher, student, PROMPT, trajectories).after_N)
    assert not torch.equal(found.before_N, measure_baking(teacher, student, PROMPT, trajectories).before_N)


# -- baking ----------------------------------------------------------------------------------------------------------

LEARNING = {"steps": 30, "batch_size": 8, "seq_len": 12, "muon_lr": 0.02, "adamw_lr": 0.005}
TABLE = BakingConfig(
    steps=200, batch_size=32, seq_len=4, adamw_lr=0.1, muon_lr=0.01, grokfast_lambda=0.0, text_weight=0.0,
    warmup_fraction=0.0, decay_fraction=1.0,
)  # fmt: skip


def test_the_baked_optimum_of_a_table_is_the_table_and_the_prompts_bias() -> None:
    """A bigram whose prompt adds b to all logits: where it was trained, softmax(W') = softmax(W + b) in the end."""
    teacher, student = (cast(Cognate, PromptedBigram()) for _ in range(2))
    config = SamplingConfig(max_tokens=1)
    prefixes = [[1 + number % (SIZE - 2)] for number in range(200)]
    trajectories = sample_continuations(teacher, [PROMPT_TOKEN], prefixes, config, torch.Generator().manual_seed(0))
    bake(teacher, student, [PROMPT_TOKEN], trajectories, None, TABLE, SilentReporter())
    expected = baked_table(cast(PromptedBigram, teacher)).softmax(-1)
    found = student.embedding.weight.detach().softmax(-1)
    assert torch.allclose(found[1 : SIZE - 1], expected[1 : SIZE - 1], atol=1e-3)
    assert not torch.allclose(teacher.embedding.weight.softmax(-1)[1], expected[1], atol=0.1)
    assert measure_baking(teacher, student, [PROMPT_TOKEN], trajectories).strength > 0.999


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_prompt_and_text_that_pull_at_one_context_meet_at_their_mixture(weight: float) -> None:
    """min KL(P_u || S) + w KL(P || S) is S = (P_u + w P) / (1 + w): what anchoring costs where both see the same."""
    teacher, student = (cast(Cognate, PromptedBigram()) for _ in range(2))
    trajectories = [Trajectory((3,), (token,)) for token in range(1, 5)]
    config = TABLE.model_copy(update={"text_weight": weight, "batch_size": 4})

    def same(generator: torch.Generator) -> Tensor:
        return torch.full((2, 5), 3)

    bake(teacher, student, [PROMPT_TOKEN], trajectories, same, config, SilentReporter())
    bare = teacher.embedding.weight.detach()[3].softmax(-1)
    prompted = baked_table(cast(PromptedBigram, teacher))[3].softmax(-1)
    found = student.embedding.weight.detach()[3].softmax(-1)
    assert torch.allclose(found, (prompted + weight * bare) / (1 + weight), atol=1e-3)


def test_baking_lowers_the_divergence_on_held_out_trajectories() -> None:
    teacher = make_model()
    student, before = copy.deepcopy(teacher), copy.deepcopy(teacher.state_dict())
    trajectories = drawn(teacher, 80)
    config = BakingConfig(**LEARNING)  # type: ignore[arg-type]
    result = bake(teacher, student, PROMPT, trajectories[:60], texts, config, SilentReporter())
    assert (result.optimizer_steps, result.num_trajectories) == (30, 60)
    assert 30 * 8 < result.continuation_tokens <= 30 * 8 * 8
    assert result.history["forward_kl"][-1] < 0.5 * result.history["forward_kl"][0]
    measure = measure_baking(teacher, student, PROMPT, trajectories[60:])
    assert measure.kl_before > 0.3
    assert measure.strength > 0.8
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_anchor_keeps_the_student_with_the_teacher_on_text() -> None:
    teacher = make_model()
    trajectories = drawn(teacher, 24)
    drift = []
    held_out = torch.randint(1, VOCABULARY, (16, 12), generator=torch.Generator().manual_seed(77))
    changed = {"batch_size": 4, "muon_lr": 0.04, "adamw_lr": 0.01}  # fast enough to forget
    for weight in (0.0, 1.0):
        student = copy.deepcopy(teacher)
        config = BakingConfig(**LEARNING | changed | {"text_weight": weight})  # type: ignore[arg-type]
        bake(teacher, student, PROMPT, trajectories, texts if weight else None, config, SilentReporter())
        with torch.no_grad():
            scores = student(held_out).logits, teacher(held_out).logits
        drift.append(divergence("forward_kl", *scores, torch.ones_like(held_out, dtype=torch.bool)).item())
    assert drift[1] < 0.5 * drift[0]


def test_a_ternary_student_learns_through_the_straight_through_estimator() -> None:
    teacher = make_model()
    student = copy.deepcopy(teacher)
    make_ternary(student, TernarySettings())
    set_hardness(student, 1.0)
    trajectories = drawn(teacher, 50)
    untrained = measure_baking(teacher, student, PROMPT, trajectories[30:])
    config = BakingConfig(**LEARNING | {"text_weight": 0.0})  # type: ignore[arg-type]
    bake(teacher, student, PROMPT, trajectories[:30], None, config, SilentReporter())
    trained = measure_baking(teacher, student, PROMPT, trajectories[30:])
    assert trained.kl_before == untrained.kl_before
    assert trained.kl_after < 0.5 * untrained.kl_after


def test_baking_refuses_bad_input() -> None:
    teacher, config, silent = make_model(), BakingConfig(steps=1, seq_len=12, text_weight=0), SilentReporter()
    student, one = copy.deepcopy(teacher), [Trajectory((1,), (2,))]
    with pytest.raises(ValueError, match="the prompt is empty"):
        bake(teacher, student, [], one, None, config, silent)
    with pytest.raises(ValueError, match="there are no trajectories"):
        bake(teacher, student, PROMPT, [], None, config, silent)
    with pytest.raises(ValueError, match="the continuation of trajectory 1 is empty"):
        bake(teacher, student, PROMPT, [*one, Trajectory((1,), ())], None, config, silent)
    with pytest.raises(ValueError, match="8 tokens of prompt .* = 65 exceed max_seq_len = 64"):
        bake(teacher, student, PROMPT, [Trajectory(tuple(ids(56, 0)), (1,))], None, config, silent)
    with pytest.raises(ValueError, match="trajectory 0 holds the token id 300"):
        bake(teacher, student, PROMPT, [Trajectory((), (300,))], None, config, silent)
    with pytest.raises(ValueError, match="the teacher would move with the student"):
        bake(teacher, teacher, PROMPT, one, None, config, silent)
    other = Cognate(CognateConfig(vocab_size=310, **SHAPE))  # type: ignore[arg-type]
    for call in (lambda: bake(teacher, other, PROMPT, one, None, config, silent),
                 lambda: measure_baking(teacher, other, PROMPT, one)):  # fmt: skip
        with pytest.raises(ValueError, match="must share a tokenizer"):
            call()
    with pytest.raises(ValueError, match="text_weight = 1.0 needs text"):
        bake(teacher, student, PROMPT, one, None, BakingConfig(), silent)
    with pytest.raises(ValueError, match="seq_len = 256 exceeds max_seq_len"):
        bake(teacher, student, PROMPT, one, texts, BakingConfig(), silent)
    with pytest.raises(ValueError, match="there are no trajectories"):
        measure_baking(teacher, student, PROMPT, [])


# -- resuming --------------------------------------------------------------------------------------------------------


class Counter(SilentReporter):
    """Keeps the steps that were taken."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def progress(self, done: int, total: int, label: str) -> None:
        self.steps.append(done)


def bake_and_keep(reporter: Reporter, folder: Path) -> None:
    """Bake a model that recurses for six steps, each of which leaves a resume point."""
    teacher = make_model(num_supervision=2, latent_steps=1)
    student = copy.deepcopy(teacher)
    config = BakingConfig(**LEARNING | {"steps": 6, "checkpoint_interval_s": 0})  # type: ignore[arg-type]
    bake(teacher, student, PROMPT, drawn(teacher, 12), texts, config, reporter, folder / "checkpoint")
    save_file(student.state_dict(), folder / "tensors")


@pytest.mark.slow
def test_killed_and_resumed_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    whole = run_apart(bake_and_keep, tmp_path / "whole")
    killed, resumed = killed_at_each(bake_and_keep, tmp_path / "broken", ["baking 3"])
    assert whole.told == [f"baking {step}" for step in range(1, 7)]
    assert killed.told == whole.told[:3]
    assert resumed.told == whole.told[2:], "the resumed run starts after the last checkpoint, not at the beginning"
    first, second = load_file(tmp_path / "whole" / "tensors"), load_file(tmp_path / "broken" / "tensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_other_trajectories_is_not_resumed(tmp_path: Path) -> None:
    teacher = cast(Cognate, PromptedBigram())
    trajectories = [Trajectory((3,), (token, 2)) for token in range(1, 7)]
    config = TABLE.model_copy(update={"steps": 3, "checkpoint_interval_s": 0.0})

    def steps(part: Sequence[Trajectory], folder: str) -> list[int]:
        counter = Counter()
        bake(teacher, copy.deepcopy(teacher), [PROMPT_TOKEN], part, None, config, counter, tmp_path / folder)
        return counter.steps

    others = {
        "fewer": trajectories[1:],
        "not all own": [dataclasses.replace(t, own=(*[False] * (len(t.continuation) - 1), True)) for t in trajectories],
        "behind something": [dataclasses.replace(t, history=(5,)) for t in trajectories],
    }
    for name, part in others.items():
        assert steps(trajectories, name) == [1, 2, 3]
        assert steps(trajectories, name) in ([], [3]), "the same run again goes on from its last resume point"
        assert steps(part, name) == [1, 2, 3]
