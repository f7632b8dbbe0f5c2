"""Prompt baking: divergences against explicit sums, sampling against the parallel form, the loss against a naive
loop without padding, exactness where the prompt cannot be seen, learning, and resuming after kill -9."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.core.small_data import SHAPE
from training_core.baking.divergences import Divergence, divergence
from training_core.baking.prompt_baking import BakingConfig, BakingMeasure, BakingObjective, bake, measure_baking
from training_core.baking.trajectories import SamplingConfig, Trajectory, align, sample_continuations
from training_core.models.cognate import Cognate, CognateConfig
from training_core.quantization.ternary import set_hardness
from training_core.quantization.training import TernarySettings, make_ternary
from training_core.training.reporting import SilentReporter

VOCABULARY = 300
KINDS: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jensen_shannon")


def make_model(seed: int = 0, **changes: object) -> Cognate:
    """A random model whose large embeddings make it sensitive to what it reads."""
    torch.manual_seed(seed)
    model = Cognate(CognateConfig(vocab_size=VOCABULARY, **SHAPE | changes))  # type: ignore[arg-type]
    torch.nn.init.normal_(model.embedding.weight, std=0.4)
    torch.nn.init.normal_(model.halt_head.weight)
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


# -- divergences -----------------------------------------------------------------------------------------------------


def naive_kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def naive_softmax(logits: Tensor) -> list[float]:
    exponentials = [math.exp(x) for x in logits.tolist()]
    total = sum(exponentials)
    return [e / total for e in exponentials]


def naive_divergence(kind: str, student: Tensor, teacher: Tensor, beta: float) -> float:
    """TRL's published formula, for logits (vocab,): beta 0 is KL(T || S), beta 1 is KL(S || T)."""
    s, t = naive_softmax(student), naive_softmax(teacher)
    if kind == "forward_kl" or (kind == "jensen_shannon" and beta == 0):
        return naive_kl(t, s)
    if kind == "reverse_kl" or (kind == "jensen_shannon" and beta == 1):
        return naive_kl(s, t)
    m = [(1 - beta) * a + beta * b for a, b in zip(s, t, strict=True)]
    return beta * naive_kl(t, m) + (1 - beta) * naive_kl(s, m)


def logits_pair() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(2, 4, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.tensor([[True, True, False, True], [False, True, False, False]])
    return student, teacher, mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_the_mean_of_explicit_sums(kind: Divergence, beta: float, temperature: float) -> None:
    student, teacher, mask = logits_pair()
    positions = [(0, 0), (0, 1), (0, 3), (1, 1)]
    terms = [naive_divergence(kind, student[p] / temperature, teacher[p] / temperature, beta) for p in positions]
    found = divergence(kind, student, teacher, mask, beta=beta, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * sum(terms) / 4, rel=1e-12)
    assert divergence(kind, teacher, teacher, mask, beta=beta).item() == pytest.approx(0.0, abs=1e-15)


def test_divergence_reproduces_trl() -> None:
    """Values of TRL's generalized_jsd_loss (seed 0, student and teacher randn(2, 3, 7), batchmean over 2 rows)."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    mask = torch.ones(2, 3, dtype=torch.bool)
    found = [divergence("jensen_shannon", student, teacher, mask, beta=b).item() * 3 for b in (0, 0.1, 0.5, 0.9, 1)]
    assert found == pytest.approx([2.755662, 0.218795, 0.523846, 0.198725, 2.366857], abs=1e-6)


def test_jensen_shannon_is_symmetric_bounded_and_has_the_stated_limits() -> None:
    student, teacher, mask = logits_pair()
    half = divergence("jensen_shannon", student, teacher, mask).item()
    assert half == pytest.approx(divergence("jensen_shannon", teacher, student, mask).item(), rel=1e-14)
    assert 0 < half < divergence("jensen_shannon", 100 * student, 100 * teacher, mask).item() <= math.log(2)
    small = 1e-5  # JSD / (beta (1 - beta)) has an error of order beta at the ends
    for beta, limit in ((small, "forward_kl"), (1 - small, "reverse_kl")):
        scaled = divergence("jensen_shannon", student, teacher, mask, beta=beta).item() / small
        assert scaled == pytest.approx(divergence(limit, student, teacher, mask).item(), rel=1e-3)  # type: ignore[arg-type]


def test_gradients() -> None:
    """d forward KL / d s = (softmax(s) - softmax(t)) / N on the mask and zero off it; the others by differences."""
    student, teacher, mask = logits_pair()
    student.requires_grad_()
    divergence("forward_kl", student, teacher, mask).backward()  # type: ignore[no-untyped-call]
    expected = (student.softmax(-1) - teacher.softmax(-1)).detach() * mask[..., None] / 4
    assert student.grad is not None
    assert torch.allclose(student.grad, expected, atol=1e-15)
    for kind in KINDS:
        assert torch.autograd.gradcheck(
            lambda s, kind=kind: divergence(kind, s, teacher, mask, beta=0.3, temperature=1.5), student
        )


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher, mask = logits_pair()
    rounded = student.bfloat16(), teacher.bfloat16()
    expected = divergence("forward_kl", rounded[0].double(), rounded[1].double(), mask)
    assert divergence("forward_kl", *rounded, mask).item() == pytest.approx(expected.item(), rel=1e-5)


def test_divergence_refuses_bad_input() -> None:
    student, teacher, mask = logits_pair()
    with pytest.raises(ValueError, match="align the teacher"):
        divergence("forward_kl", student[:, 1:], teacher, mask)
    with pytest.raises(ValueError, match="must be boolean"):
        divergence("forward_kl", student, teacher, mask.float())
    with pytest.raises(ValueError, match="selects no position"):
        divergence("forward_kl", student, teacher, mask & False)
    with pytest.raises(ValueError, match="temperature = 0"):
        divergence("forward_kl", student, teacher, mask, temperature=0)
    with pytest.raises(ValueError, match="beta = 1.5"):
        divergence("jensen_shannon", student, teacher, mask, beta=1.5)
    with pytest.raises(ValueError, match="unknown divergence 'hellinger'"):
        divergence("hellinger", student, teacher, mask)  # type: ignore[arg-type]


# -- trajectories ----------------------------------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    rows = align([7, 8], [Trajectory((1, 2), (3, 4, 0)), Trajectory((), (5,))])
    assert rows.student_BS.tolist() == [[0, 1, 2, 3, 4], [0, 5, 0, 0, 0]]
    assert rows.teacher_BT.tolist() == [[0, 7, 8, 1, 2, 3, 4], [0, 7, 8, 5, 0, 0, 0]]
    assert rows.targets_BS.tolist() == [[1, 2, 3, 4, 0], [5, 0, 0, 0, 0]]
    assert rows.mask_BS.int().tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, 0, 0]]


def test_greedy_sampling_in_lockstep_is_greedy_decoding_of_every_row_alone() -> None:
    """Rows of unlike lengths, on a model that recurses and halts, against the parallel form row by row."""
    model = make_model(cycles=2, latent_steps=1, num_supervision=3, halt_threshold=0.5).double()
    prefixes = [ids(n, n) for n in (3, 0, 9, 1)]
    config = SamplingConfig(max_tokens=6, sampling_temperature=0)
    found = sample_continuations(model, PROMPT, prefixes, config, torch.Generator())
    for prefix, trajectory in zip(prefixes, found, strict=True):
        row = [0, *PROMPT, *prefix]
        alone: list[int] = []
        while len(alone) < 6 and alone[-1:] != [0]:
            with torch.no_grad():
                alone.append(int(model(torch.tensor([row + alone])).logits[0, -1].argmax()))
        assert trajectory == Trajectory(tuple(prefix), tuple(alone))


def test_sampling_has_the_teachers_distribution() -> None:
    """600 draws from a 2-token nucleus at temperature 4: within 3 sigma of the renormalised probability."""
    model = make_model()
    with torch.no_grad():
        p = (model(torch.tensor([[0, *PROMPT, 5]])).logits[0, -1].double() / 4).softmax(-1)
    top = p.topk(2)
    config = SamplingConfig(max_tokens=1, sampling_temperature=4, top_p=float(top.values[0]) + 1e-6)
    found = sample_continuations(model, PROMPT, [[5]] * 600, config, torch.Generator().manual_seed(0))
    firsts = [t.continuation[0] for t in found]
    share = float(top.values[0] / top.values.sum())
    assert 0.05 < share < 0.95
    assert set(firsts) == set(top.indices.tolist())
    assert abs(firsts.count(int(top.indices[0])) / 600 - share) < 3 * math.sqrt(share * (1 - share) / 600)


def test_a_continuation_ends_with_end_of_text() -> None:
    model = make_model()
    with torch.no_grad():
        model.embedding.weight[0] *= 8  # makes end-of-text likely
    found = drawn(model, 40)
    ended = [t for t in found if t.continuation[-1] == 0]
    assert len(ended) > 5
    assert all(0 not in t.continuation[:-1] and 1 <= len(t.continuation) <= 8 for t in found)
    assert all(len(t.continuation) == 8 for t in found if t not in ended)
    assert found == drawn(model, 40), "the generator alone decides"


def test_trajectories_refuse_bad_input() -> None:
    model, generator, config = make_model(), torch.Generator(), SamplingConfig(max_tokens=8)
    with pytest.raises(ValueError, match="the prompt is empty"):
        sample_continuations(model, [], [[1]], config, generator)
    with pytest.raises(ValueError, match="no prefixes"):
        sample_continuations(model, PROMPT, [], config, generator)
    with pytest.raises(ValueError, match=r"8 tokens of prompt \+ 49 of prefix \+ 8 of continuation = 65 exceed"):
        sample_continuations(model, PROMPT, [ids(49, 0)], config, generator)
    with pytest.raises(ValueError, match="the prompt holds the token id 300, outside 0 .. 299"):
        sample_continuations(model, [300], [[1]], config, generator)
    with pytest.raises(ValueError, match="a prefix holds the token id -1"):
        sample_continuations(model, PROMPT, [[-1]], config, generator)
    assert len(sample_continuations(model, PROMPT, [ids(48, 0)], config, generator)[0].prefix) == 48


# -- the loss --------------------------------------------------------------------------------------------------------


def rows_alone(teacher: Cognate, trajectories: Sequence[Trajectory]) -> list[tuple[list[int], Tensor]]:
    """Of every trajectory: the student's tokens, and the prompted teacher's logits of its continuation tokens. One row
    at a time, without padding."""
    found = []
    for t in trajectories:
        tokens = [0, *PROMPT, *t.prefix, *t.continuation]
        with torch.no_grad():
            logits = teacher(torch.tensor([tokens])).logits[0]
        found.append(([0, *t.prefix, *t.continuation], logits[-len(t.continuation) - 1 : -1]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_loss_equals_a_naive_loop_without_padding(kind: Divergence) -> None:
    """Two supervision steps, every term: divergence, anchor on text, halting of both."""
    teacher, student = (make_model(seed, num_supervision=2, latent_steps=1) for seed in (0, 1))
    trajectories = [*drawn(teacher, 5), Trajectory((4,), (9,))]
    config = BakingConfig(divergence=kind, beta=0.3, temperature=1.5, text_weight=0.7)
    objective = BakingObjective(teacher, PROMPT, trajectories, texts, config)
    batch, seed = torch.tensor([2, 5, 0, 2]), torch.Generator().manual_seed(8)
    results = [objective(student, batch, None, seed)]
    results.append(objective(student, batch, results[0].carry, seed))
    rows = rows_alone(teacher, [trajectories[i] for i in batch.tolist()])
    text = texts(torch.Generator().manual_seed(8))
    for number, result in enumerate(results):
        left, halting, count = 0.0, 0.0, 0
        for tokens, answers in rows:
            y = attended(student, torch.tensor([tokens]), number + 1)
            for index, answer in enumerate(answers):
                position = len(tokens) - len(answers) - 1 + index
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
    model = make_model(memory_layers=[], window=4, num_persistent=0).double()
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
    trajectories = drawn(teacher, 18, 4)  # more than one batch of rows
    found = measure_baking(teacher, student, PROMPT, trajectories)
    sums = {"before": 0.0, "after": 0.0}
    for tokens, answers in rows_alone(teacher, trajectories):
        for name, model in (("before", teacher), ("after", student)):
            with torch.no_grad():
                scores = model(torch.tensor([tokens])).logits[0, -len(answers) - 1 : -1]
            sums[name] += sum(
                naive_divergence("forward_kl", s.double(), a.double(), 0) for s, a in zip(scores, answers, strict=True)
            )
    count = sum(len(t.continuation) for t in trajectories)
    assert found.tokens_N.tolist() == [len(t.continuation) for t in trajectories]
    assert found.kl_before == pytest.approx(sums["before"] / count, rel=1e-4)
    assert found.kl_after == pytest.approx(sums["after"] / count, rel=1e-4)
    assert found.strength == pytest.approx(1 - sums["after"] / sums["before"], rel=1e-4)


def test_strength_by_hand() -> None:
    measure = BakingMeasure(torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([2.0, 6.0]))
    assert measure.metrics() == {"baking_kl_before": 0.5, "baking_kl_after": 0.125, "baking_strength": 0.75}


# -- baking ----------------------------------------------------------------------------------------------------------

LEARNING = {"steps": 30, "batch_size": 8, "seq_len": 12, "muon_lr": 0.02, "adamw_lr": 0.005}


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
    """Prints and keeps the steps that were taken."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def progress(self, done: int, total: int, label: str) -> None:
        self.steps.append(done)
        print(done, flush=True)


def resumable(checkpoint: Path) -> tuple[Cognate, list[int]]:
    """Bake a model that recurses for 10 steps, each of which leaves a resume point."""
    teacher = make_model(num_supervision=2, latent_steps=1)
    student, counter = copy.deepcopy(teacher), Counter()
    config = BakingConfig(**LEARNING | {"steps": 10, "checkpoint_interval_s": 0})  # type: ignore[arg-type]
    bake(teacher, student, PROMPT, drawn(teacher, 12), texts, config, counter, checkpoint)
    return student, counter.steps


def test_killed_and_resumed_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1);"
        "from tests.core.test_baking import resumable; resumable(Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as victim:
        assert victim.stdout is not None
        for line in victim.stdout:
            if int(line) == 3:
                break
        victim.send_signal(signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL
    resumed, resumed_steps = resumable(tmp_path / "killed")
    undisturbed, steps = resumable(tmp_path / "undisturbed")
    assert steps == list(range(1, 11))
    assert 3 <= resumed_steps[0] <= 6, "the resumed run starts after the last checkpoint, not at the beginning"
    first, second = undisturbed.state_dict(), resumed.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_other_trajectories_is_not_resumed(tmp_path: Path) -> None:
    teacher = make_model()
    trajectories = drawn(teacher, 6)
    config = BakingConfig(**LEARNING | {"steps": 3, "checkpoint_interval_s": 0})  # type: ignore[arg-type]
    taken = []
    for part in (trajectories, trajectories, trajectories[1:]):
        counter = Counter()
        bake(teacher, copy.deepcopy(teacher), PROMPT, part, texts, config, counter, tmp_path)
        taken.append(counter.steps)
    assert (taken[0], taken[2]) == ([1, 2, 3], [1, 2, 3])
    assert taken[1] in ([], [3]), "the same run again goes on from its last resume point"
