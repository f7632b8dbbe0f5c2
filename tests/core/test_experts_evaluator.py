"""Measured compositions against one that composes W' for every question alone; what is cached, raced and timed."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given as vary
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from tests.core.test_character_council import question
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.held_out import open_suite
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.windows import Windows
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.svf import Expert, SVFModel
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig
from training_core.phases.p7_experts.evaluator import Evaluator, Latency, Shared, composed, recursing, shared
from training_core.phases.p7_experts.genome import Composition, Space
from training_core.tasks.questions.likelihood import example_of, measure_likelihoods
from training_core.tasks.questions.question import Question
from training_core.tasks.questions.sft_objective import LessonObjective

SHAPE = {
    "d_model": 32, "num_layers": 3, "num_core_layers": 1, "num_heads": 2, "d_ff": 48, "window": 32, "max_seq_len": 128,
    "num_persistent": 2, "memory_layers": [0], "memory_heads": 2, "memory_rank": 8, "memory_chunk": 16,
}  # fmt: skip
QUESTIONS = [
    question(f"{a}{sign}{b}", str(a + b if sign == "+" else a - b), 1, family)
    for family, sign in (("sums", "+"), ("gaps", "-"))
    for a, b in ((7, 5), (12, 3), (9, 4), (31, 8), (5, 2), (48, 11))
] + [question(f"Say {word}.", word, 2, "words") for word in ("red", "stone", "a", "winter", "seven", "no")]
NUM_EXPERTS = 2


def cognate(**changes: object) -> Cognate:
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=320, **(SHAPE | changes)))  # type: ignore[arg-type]
    torch.nn.init.normal_(model.halt_head.weight, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(small_data: dict[str, Path]) -> Tokenizer:
    return load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def learned(tokenizer: Tokenizer) -> Cognate:
    """One that gives the answers some probability; copied, never changed."""
    model = cognate().train()
    objective = LessonObjective([example_of(asked, tokenizer) for asked in QUESTIONS])
    optimizer = MuGrokfast(model, OptimizerConfig(muon_lr=0.02, adamw_lr=0.02))
    for _ in range(30):
        objective(model, torch.arange(len(QUESTIONS)), None, torch.Generator()).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
    return model.eval()


def experts_for(scalable: SVFModel, number: int = NUM_EXPERTS, spread: float = 0.8) -> list[Expert]:
    draw = torch.Generator().manual_seed(3)
    return [
        Expert.of(
            {n: 1 + spread * (torch.rand(len(s.s_R), generator=draw) - 0.5) for n, s in scalable.singular.items()},
            scalable.singular,
        )
        for _ in range(number)
    ]


def judged(rows: int, number: int = NUM_EXPERTS, seed: int = 5) -> Tensor:
    return torch.randn(rows, number + 1, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def batches(
    folders: dict[str, Path], racing_share: float = 0.5, num_windows: int = 3, window_tokens: int = 0
) -> Shared:
    tokenizer = load_tokenizer((folders["tokenizer"] / "tokenizer.json").read_text())
    windows = open_suite(folders["evaluation_suite"]).validation
    return shared(
        QUESTIONS,
        windows,
        tokenizer,
        128,
        num_questions=18,
        num_windows=num_windows,
        racing_share=racing_share,
        window_tokens=window_tokens,
    )


def evaluator(
    folders: dict[str, Path], model: Cognate | None = None, experts: list[Expert] | None = None, **changes: object
) -> Evaluator:
    scalable = SVFModel(model if model is not None else cognate())
    experts = experts if experts is not None else experts_for(scalable)
    given = batches(
        folders, float(changes.pop("racing_share", 1.0)), window_tokens=int(changes.pop("window_tokens", 32))
    )  # type: ignore[arg-type, call-overload]
    settings = {"router_bytes": 100, "latency_bound": 1e9, "latency_questions": 3, "latency_repeats": 1} | changes
    rows, texts = judged(len(given.questions), len(experts)), judged(len(given.inputs_WS), len(experts), 6)
    return Evaluator(scalable, experts, given, rows, texts, **settings)  # type: ignore[arg-type]


def some(space: Space, **changes: object) -> Composition:
    return space.of_codes(space.codes(replace(space.together(), **changes)))  # type: ignore[arg-type]


COMPOSITIONS: list[dict[str, object]] = [
    {},
    {"first_layer": 2, "temperature": 0.25, "strengths": (0.5, 1.5)},
    {"experts": (True, False), "strengths": (1.25, 0.0), "temperature": 0.0, "first_layer": 1},
    {"cycles": 2, "latent_steps": 1},
    {"num_supervision": 2, "halt_threshold": 0.5, "first_layer": 1},
]


def naive_weights(p: Tensor, c: Composition) -> list[float]:
    """Of one question, in Python."""
    scores = [float(p[0]), *(float(x) if there else 0.0 for x, there in zip(p[1:], c.experts, strict=True))]
    if c.temperature == 0:
        shares = [float(place == scores.index(max(scores))) for place in range(len(scores))]
    else:
        powers = [score ** (1 / c.temperature) for score in scores]
        shares = [power / sum(powers) for power in powers]
    return [share * strength for share, strength in zip(shares[1:], c.strengths, strict=True)]


def naive_model(model: Cognate, experts: list[Expert], weights: list[float], c: Composition) -> Cognate:
    """W' = U diag(S m) V^T sum(S) / sum(S m) written down in float64 in a plain model, m = 1 + sum w (m_k - 1)."""
    plain = copy.deepcopy(model)
    plain.config = CognateConfig(**(plain.config.model_dump() | c.recursion()))
    for number, block in enumerate([*plain.prelude, *plain.core]):
        stack = "prelude" if number < len(plain.prelude) else "core"
        for name in ("gate", "up", "down"):
            if number < c.first_layer:
                continue
            full = f"{stack}.{number if stack == 'prelude' else number - len(plain.prelude)}.mlp.{name}"
            weight = getattr(block.mlp, name).weight
            u, s, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
            m = 1 + sum(
                w * float(e.spreads[full]) * e.codes[full].double() / 127 for w, e in zip(weights, experts, strict=True)
            )
            weight.data = (u @ torch.diag(s * m) @ vh * s.sum() / (s * m).sum()).float()
    return plain


def naive_objectives(
    model: Cognate, experts: list[Expert], c: Composition, given: Shared, tokenizer: Tokenizer
) -> tuple[float, float]:
    """Loss and bits per byte: a question, or a window, at a time."""
    by_family: dict[str, list[float]] = {}
    rows, texts = judged(len(given.questions)), judged(len(given.inputs_WS), seed=6)
    for p, asked in zip(rows, given.questions, strict=True):
        plain = naive_model(model, experts, naive_weights(p, c), c)
        example = example_of(asked, tokenizer)
        ids = torch.tensor([[0, *example.prompt, *example.completion]])
        with torch.no_grad():
            log_probs = plain(ids[:, :-1]).logits.double().log_softmax(-1)[0]
        start = len(example.prompt)
        total = sum(float(log_probs[start + i, token]) for i, token in enumerate(example.completion))
        by_family.setdefault(asked.family, []).append(math.exp(total))
    nats = tokens = 0.0
    for p, inputs_S, targets_S in zip(texts, given.inputs_WS, given.targets_WS, strict=True):
        plain = naive_model(model, experts, naive_weights(p, c), c)
        with torch.no_grad():
            log_probs = plain(inputs_S[None]).logits.double().log_softmax(-1)[0]
        for place, target in enumerate(targets_S.tolist()):
            if target >= 0:
                nats -= float(log_probs[place, target])
                tokens += 1
    means = [sum(values) / len(values) for values in by_family.values()]
    return 1 - sum(means) / len(means), nats / tokens * given.tokens_per_byte / math.log(2)


@pytest.mark.parametrize("changes", COMPOSITIONS)
def test_a_naive_evaluator_finds_the_same(
    small_data: dict[str, Path], tokenizer: Tokenizer, learned: Cognate, changes: dict[str, object]
) -> None:
    """The one composes W' in float64 for a row alone, the other multiplies factors in float32 for padded rows: 1e-5
    of the loss (whose completions have few tokens) and 2e-5 bits."""
    measured = evaluator(small_data, learned)
    composition = some(measured.space, **changes)
    found = measured.evaluate(composition)
    experts = list(measured.experts)
    loss, text = naive_objectives(learned, experts, composition, measured.given, tokenizer)
    assert found.status == "measured"
    assert found.objectives is not None
    assert found.objectives[0] == pytest.approx(loss, abs=1e-5)
    assert found.objectives[3] == pytest.approx(text, abs=2e-5)
    assert 1 - loss > 1e-3, "there is an accuracy to be wrong about"


def test_without_experts_it_is_the_model_bit_for_bit(small_data: dict[str, Path], tokenizer: Tokenizer) -> None:
    model = cognate()
    make_ternary(model, TernarySettings())
    measured = evaluator(small_data, model)
    found = measured.evaluate(measured.space.unadapted)
    assert found.objectives is not None
    expected_Q = measure_likelihoods(model, tokenizer, measured.given.questions).expected_Q()
    families = [q.family for q in measured.given.questions]
    means = [expected_Q[[f == family for f in families]].mean() for family in sorted(set(families))]
    assert found.objectives[:3] == (1 - float(torch.stack(means).mean()), 1.0, 0.0)
    assert found.constraints[1] == 0.0


def test_bits_per_byte_over_all_windows_is_that_of_the_suite(small_data: dict[str, Path]) -> None:
    model = cognate()
    windows = open_suite(small_data["evaluation_suite"]).validation
    given = batches(small_data, 1.0, num_windows=10_000)
    scalable = SVFModel(model)
    experts = experts_for(scalable)
    measured = Evaluator(
        scalable, experts, given, judged(18), judged(len(given.inputs_WS)),
        router_bytes=0, latency_bound=4.0, latency_questions=2, latency_repeats=1,
    ).evaluate(Space.of(model.config, NUM_EXPERTS).unadapted)  # fmt: skip
    assert measured.objectives is not None
    assert measured.objectives[3] == pytest.approx(measure_windows(model, windows, 8).bits_per_byte(), rel=1e-6)


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("changes", COMPOSITIONS)
def test_kept_activations_change_nothing(
    small_data: dict[str, Path], changes: dict[str, object], ternary: bool
) -> None:
    """The same operations on the same tensors: to the bit."""
    model = cognate()
    if ternary:
        make_ternary(model, TernarySettings())
    kept, anew = (evaluator(small_data, model, keep_activations=keep) for keep in (True, False))
    composition = some(kept.space, **changes)
    one, other = kept.evaluate(composition).objectives, anew.evaluate(composition).objectives
    assert one is not None
    assert other is not None
    assert (one[0], one[2], one[3]) == (other[0], other[2], other[3])


def test_genes_of_the_recursion_change_the_model_and_are_put_back(
    small_data: dict[str, Path], learned: Cognate
) -> None:
    measured = evaluator(small_data, learned)
    own = measured.model.config
    found = {}
    for name, value in (("cycles", 3), ("latent_steps", 2), ("num_supervision", 2)):
        composition = some(measured.space, experts=(False, False), **{name: value})
        assert composition.first_layer == 3, "nothing is adapted"
        found[name] = measured.evaluate(composition).objectives
        assert measured.model.config is own
    tokens = measured.given.inputs_WS
    with torch.no_grad(), recursing(measured.model, {"num_supervision": 2, "halt_threshold": 0.1}) as model:
        halted = model(tokens)
        model.config = model.config.model_copy(update={"halt_threshold": 1.0})
        assert halted.steps.double().mean() < 1.9 < model(tokens).steps.double().mean() == 2.0
    assert measured.model.config is own
    plain = measured.evaluate(measured.space.unadapted).objectives
    assert len({objectives[3] for objectives in [*found.values(), plain] if objectives is not None}) == 4


def test_bytes_are_those_of_the_experts_in_it_from_the_first_adapted_layer(small_data: dict[str, Path]) -> None:
    """A layer has three matrices of min(32, 48) singular values: 3 * (32 + 2) bytes; the router takes 100."""
    measured = evaluator(small_data)
    space = measured.space
    sizes = {
        100 + 2 * 3 * 102: space.together(),
        100 + 3 * 102: space.alone(1),
        100 + 2 * 102: some(space, first_layer=2, experts=(True, True)),
        0: some(space, first_layer=3),
    }
    sizes[100 + 2 * 1 * 102] = some(space, first_layer=2)
    for size, composition in sizes.items():
        assert measured.num_bytes(composition) == size


def test_one_that_is_too_slow_is_timed_and_not_measured(small_data: dict[str, Path]) -> None:
    measured = evaluator(small_data, latency_bound=1.5)
    slow, fast = measured.space.together(), some(measured.space, first_layer=2)
    measured.latencies |= {slow.structure: Latency(0.6, 0.2), fast.structure: Latency(0.3, 0.2)}
    found = measured.evaluate(slow)
    assert (found.status, found.objectives, found.constraints) == ("too slow", None, (pytest.approx(1.0), 0.0))
    on_the_bound = measured.evaluate(fast)
    assert on_the_bound.status == "measured"
    assert on_the_bound.constraints[0] == pytest.approx(0.0, abs=1e-12)
    assert on_the_bound.objectives is not None
    assert on_the_bound.objectives[1] == pytest.approx(1.5)


def test_a_bad_one_is_raced_out_on_the_first_part(small_data: dict[str, Path], learned: Cognate) -> None:
    """The lag by hand: three families of three differences each."""
    measured = evaluator(small_data, learned, racing_share=0.5)
    assert [len(part.questions) for part in measured.given.parts] == [9, 9]
    own = measured._own[0]
    fall = torch.tensor([[0.010, 0.011, 0.012], [0.008, 0.010, 0.009], [0.012, 0.010, 0.011]], dtype=torch.float64)
    order = sorted(range(9), key=lambda place: measured.given.parts[0].questions[place].family)
    worse = own.clone()
    worse[order] -= fall.flatten()
    mean, error = float(fall.mean()), math.sqrt(3 * (1e-6 / 3)) / 3
    assert measured._lag(worse) == pytest.approx(mean - 2.5758293035489004 * error - 1e-5, abs=1e-12)
    assert measured._lag(own) == pytest.approx(-1e-5)
    uneven = own.clone()
    uneven[order[0]] -= 0.1
    assert measured._lag(uneven) < 0, "one question tells nothing"


def test_raced_out_leaves_no_numbers(small_data: dict[str, Path], learned: Cognate) -> None:
    """Experts that tear a model that knows the answers apart."""
    experts = experts_for(SVFModel(learned), spread=1.9)
    measured = evaluator(small_data, learned, experts, racing_share=0.5)
    found = measured.evaluate(some(measured.space, temperature=4.0, strengths=(1.5, 1.5)))
    assert float(measured._own[0].mean()) > 0.3
    assert found.status == "raced out"
    assert found.objectives is None
    assert found.constraints[1] > 0.01
    assert found.document() == {"status": "raced out"}


def test_a_composition_is_measured_once(small_data: dict[str, Path]) -> None:
    measured = evaluator(small_data)
    first = measured.evaluate(measured.space.together())
    assert measured.evaluate(some(measured.space)) is first
    assert len(measured.known) == 1
    assert len(measured.latencies) == 1


def test_latency_is_of_two_passes_and_measured_once_for_a_structure(small_data: dict[str, Path]) -> None:
    measured = evaluator(small_data, latency_repeats=5, latency_questions=6)
    space = measured.space
    own = measured.latency(space.unadapted.structure)
    assert own.ratio == 1.0
    adapted = measured.latency(space.together().structure)
    assert adapted.seconds > adapted.unadapted_seconds > 0, "it reads the question twice"
    deep = measured.latency(some(space, experts=(False, False), cycles=3, latent_steps=2).structure)
    assert deep.ratio > 1.2, "nine passes through the core where the model has one"
    assert measured.latency(some(space, temperature=0.5, strengths=(0.5, 0.1)).structure) is adapted


def test_identical_experts_give_the_same_and_are_paid_for_each(small_data: dict[str, Path]) -> None:
    """Nothing merges them: which of two it is does not matter, and both together take twice the bytes."""
    scalable = SVFModel(cognate())
    twice = experts_for(scalable, 1) * 2
    measured = evaluator(small_data, experts=twice)
    half = judged(18).clone()
    measured.probabilities_QN = torch.stack([half[:, 0], *[(1 - half[:, 0]) / 2] * 2], 1)
    measured.text_probabilities_WN = torch.full((3, 3), 1 / 3)
    measured._own = [measured._expected(measured.space.unadapted, 0)]
    one, other = (measured.evaluate(measured.space.alone(k)).objectives for k in (0, 1))
    assert one == other
    assert measured.num_bytes(measured.space.together()) - 100 == 2 * (
        measured.num_bytes(measured.space.alone(0)) - 100
    )


def test_one_expert_is_enough(small_data: dict[str, Path]) -> None:
    measured = evaluator(small_data, experts=experts_for(SVFModel(cognate()), 1))
    assert measured.space.num_genes == 8
    assert measured.space.alone(0) == measured.space.together()
    assert measured.evaluate(measured.space.together()).status == "measured"
    with pytest.raises(ValueError, match="train at least one"):
        Space.of(measured.model.config, 0)


def test_composed_is_what_was_measured(small_data: dict[str, Path]) -> None:
    measured = evaluator(small_data)
    composition = some(measured.space, first_layer=1, cycles=2, temperature=2.0)
    inputs = measured.given.inputs_WS
    with torch.no_grad():
        before = measured.model(inputs).logits
        judgement = measured.text_probabilities_WN
        with composed(measured.svf, measured.experts, composition, judgement) as model:
            logits = model(inputs).logits
        multipliers = measured._multipliers(composition, judgement)
        assert torch.equal(logits, measured._logits(composition, multipliers, inputs, (-1, 0)))
        assert not torch.allclose(logits, before, atol=1e-3)
        assert torch.equal(measured.model(inputs).logits, before), "as it was"


def test_shared_batches_are_alike_for_all_families_and_spread(
    small_data: dict[str, Path], tokenizer: Tokenizer
) -> None:
    windows = open_suite(small_data["evaluation_suite"]).validation
    given = shared(
        QUESTIONS, windows, tokenizer, 128, num_questions=13, num_windows=2, racing_share=0.5, window_tokens=16
    )
    counts = [sorted(q.family for q in part.questions) for part in given.parts]
    assert counts == [["gaps"] * 2 + ["sums"] * 2 + ["words"] * 2] * 2
    assert set(given.questions) <= set(QUESTIONS)
    assert len(set(given.questions)) == 12
    assert given.inputs_WS.shape == given.targets_WS.shape == (2, 16)
    number = len(windows.inputs)
    assert torch.equal(given.inputs_WS[1], windows.inputs[3 * number // 4][:16])
    few: list[Question] = [*QUESTIONS[:3], *QUESTIONS[6:8]]
    with pytest.raises(ValueError, match=r"got 1 of 2 of 'gaps': raise search\.questions"):
        shared(few, windows, tokenizer, 128, num_questions=6, num_windows=1, racing_share=0.5)
    whole = shared(few, windows, tokenizer, 128, num_questions=99, num_windows=1, racing_share=1)
    assert [len(part.questions) for part in whole.parts] == [5]


def test_a_router_that_judged_something_else_is_refused(small_data: dict[str, Path]) -> None:
    given = batches(small_data, 1.0)
    scalable = SVFModel(cognate())
    settings = {"router_bytes": 0, "latency_bound": 4.0, "latency_questions": 2, "latency_repeats": 1}
    with pytest.raises(ValueError, match="18 shared questions and 3 windows, got 17 and 3"):
        Evaluator(scalable, experts_for(scalable), given, judged(17), judged(3), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gives 3 probabilities, the first of them of none, got 4"):
        Evaluator(scalable, experts_for(scalable), given, judged(18, 3), judged(3, 3), **settings).evaluate(  # type: ignore[arg-type]
            Space.of(scalable.model.config, 2).together()
        )


SPACE = Space.of(CognateConfig(vocab_size=320, **SHAPE, halt_threshold=0.62, num_supervision=2), 2)  # type: ignore[arg-type]


@vary(st.lists(st.floats(0, 1), min_size=10, max_size=10))
def test_genomes_decode_to_one_spelling_and_back(genome: list[float]) -> None:
    found = SPACE.decode(genome)
    assert SPACE.decode(SPACE.encode(found)) == found
    assert SPACE.of_codes(SPACE.codes(found)) == found
    assert Composition.from_document(found.document()) == found
    assert found.adapts == (found.first_layer < 3)
    assert all(there or strength == 0 for there, strength in zip(found.experts, found.strengths, strict=True))
    assert found.num_supervision == 2 or found.halt_threshold == 1.0


def test_a_genome_by_hand() -> None:
    """Ten genes: in, in, strengths of 31 levels, 4 first layers, 12 temperatures, 3, 3, 2 and 12 levels, as the model's
    own threshold .62 is one."""
    assert [len(its) for its in SPACE.levels] == [2, 2, 31, 31, 4, 12, 3, 3, 2, 12]
    found = SPACE.decode([0.5, 0.499, 20.5 / 31, 0.9, 0.25, 0.0, 0.99, 1.0, 0.5, 3.5 / 12])
    assert found == Composition((True, False), (1.0, 0.0), 1, 0.0, 3, 2, 2, 0.62)
    assert SPACE.unadapted.halt_threshold == 0.62
    assert found.structure == (1, 3, 2, 2)
    assert SPACE.num_genes == 2 * SPACE.num_experts + 6
    with pytest.raises(ValueError, match="not in the space"):
        SPACE.codes(replace(found, temperature=0.3))
    with pytest.raises(ValueError, match="has the fields"):
        Composition.from_document({"experts": [True]})


def test_weights_by_hand() -> None:
    """p = (.5, .3, .2): at temperature 1/2 squared, .25 : .09 : .04; without the second expert .25 : .09."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    both = replace(SPACE.together(), temperature=0.5, strengths=(1.0, 0.5))
    assert both.weights(p)[0].tolist() == pytest.approx([0.09 / 0.38, 0.5 * 0.04 / 0.38], abs=1e-7)
    alone = replace(SPACE.alone(0), temperature=0.5)
    assert alone.weights(p)[0].tolist() == pytest.approx([0.09 / 0.34, 0.0], abs=1e-7)
    likeliest = replace(both, temperature=0.0)
    assert likeliest.weights(p).tolist() == [[0.0, 0.0], [0.0, 0.5]]
    nearly = replace(both, temperature=0.02)
    assert torch.allclose(nearly.weights(p), likeliest.weights(p), atol=1e-6), "top-1 is the limit"
    assert likeliest.weights(torch.full((1, 3), 1 / 3)).tolist() == [[0.0, 0.0]], "of equals the first, none"
    assert both.weights(torch.tensor([[1.0, 0.0, 0.0]])).isfinite().all()


def test_windows_are_not_touched(small_data: dict[str, Path]) -> None:
    windows: Windows = open_suite(small_data["evaluation_suite"]).validation
    before = windows.inputs.clone()
    measured = evaluator(small_data)
    measured.evaluate(measured.space.together())
    assert torch.equal(windows.inputs, before)
