"""Gradients of questions against those of one at a time; N and the families of experts on planted structure."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from tokenizers import Tokenizer
from torch import Tensor, nn

from tests.core.small_cycles import parent
from tests.core.test_character_council import question
from tests.oracles.average_linkage import clusterings
from training_core.data.tokenizer import load_tokenizer
from training_core.nn.svf import P_START, ScaledLinear, SVFModel
from training_core.phases.p7_experts.discovery import Discovery, LinkageStep, average_linkage, discover
from training_core.phases.p7_experts.gradient_profile import GradientProfile, measure_gradients, measure_profile
from training_core.phases.p7_experts.report import shown_discovery
from training_core.tasks.questions import likelihood
from training_core.tasks.questions.likelihood import AskedQuestions, Likelihoods, measure_likelihoods
from training_core.tasks.questions.question import Question

ASKED = [question(), question("What is 17+25, and why?", "42"), question("Copy: a", "a"), question("7-5", "two or so")]
SEEDS = 50


@pytest.fixture(scope="module")
def tokenizer(small_data: dict[str, Path]) -> Tokenizer:
    return load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def scalable() -> SVFModel:
    return SVFModel(parent())


def profile(families: list[str], directions_QP: Tensor, wide: int = 0) -> GradientProfile:
    """Of given gradients; each completion has two tokens of probability exp(-1/2) each."""
    ones = torch.ones(len(families), dtype=torch.float64)
    parts = {"first": directions_QP[:, wide:], "second": directions_QP[:, :wide]}
    return GradientProfile(
        tuple(families), Likelihoods(-ones, 2 * ones, 0 * ones), parts if wide else {"m": directions_QP}
    )


def planted(k: int, per: int, seed: int, number: int = 24, noise: float = 4.0, width: int = 120) -> GradientProfile:
    """k orthogonal directions, `per` families of each (family f has direction f % k), and noise of `noise` times their
    length around every question: its cosine with its direction is about 1 / noise."""
    generator = torch.Generator().manual_seed(seed)
    axes_KP = torch.linalg.qr(torch.randn(width, k, generator=generator)).Q.T
    families = [f"family {f:02d}" for f in range(k * per) for _ in range(number)]
    around_QP = noise * width**-0.5 * torch.randn(len(families), width, generator=generator)
    return profile(families, axes_KP[[int(family[-2:]) % k for family in families]] + around_QP)


def found(given: GradientProfile, seed: int = 0, resamples: int = 1) -> Discovery:
    return discover(given, torch.Generator().manual_seed(seed), resamples)


def is_pure(result: Discovery, k: int) -> bool:
    return all(len({int(family[-2:]) % k for family in expert.families}) == 1 for expert in result.experts)


def test_a_question_has_the_gradient_that_the_start_of_an_experts_training_has(
    scalable: SVFModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d loss / d p by the ordinary way, one question alone. At m = sigmoid(p) of one constant, dm / dp = 1 - sigmoid(p)
    in units of m = 1. Float32 through another order of operations: 1e-4 of the largest entry."""
    monkeypatch.setattr(likelihood, "ROWS_AT_ONCE", 3)
    together = measure_gradients(scalable, AskedQuestions(ASKED, tokenizer, 320))
    slope = 1 - torch.tensor(P_START).sigmoid()
    for place, asked in enumerate(ASKED):
        model = scalable.trainable()
        [(_, rows)] = AskedQuestions([asked], tokenizer, 320).batches
        log_probs_SV = model(rows.inputs_BS).logits[0].log_softmax(-1)
        told = [float(mask) * log_probs_SV[i, rows.targets_BS[0, i]] for i, mask in enumerate(rows.mask_BS[0])]
        (-torch.stack(told).sum() / rows.mask_BS.sum()).backward()
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ScaledLinear)}
        assert set(layers) == set(together)
        for name, layer in layers.items():
            assert isinstance(layer.p, nn.Parameter)
            assert layer.p.grad is not None
            expected = layer.p.grad / slope
            assert float(expected.abs().max()) > 1e-4
            assert together[name][place].tolist() == pytest.approx(
                expected.tolist(), abs=1e-4 * float(expected.abs().max())
            )


def test_the_gradients_of_a_matrix_sum_to_nothing(scalable: SVFModel, tokenizer: Tokenizer) -> None:
    """Multipliers of one constant change nothing. Float32 sums of 48 entries or fewer: 1e-5 of their absolute sum."""
    for g_QR in measure_gradients(scalable, AskedQuestions(ASKED, tokenizer, 320)).values():
        assert float((g_QR.sum(1).abs() / g_QR.abs().sum(1)).max()) < 1e-5


def test_a_profile_holds_the_likelihoods_and_leaves_the_model_alone(scalable: SVFModel, tokenizer: Tokenizer) -> None:
    measured = measure_profile(scalable, AskedQuestions(ASKED, tokenizer, 320))
    expected = measure_likelihoods(parent(), tokenizer, ASKED)
    assert torch.equal(measured.told.log_prob_Q, expected.log_prob_Q)
    assert measured.families == tuple(asked.family for asked in ASKED)
    assert all(layer.multipliers is None for layer in scalable.layers.values())
    assert measured.directions().norm(dim=1).tolist() == pytest.approx([1.0] * 4, rel=1e-12)


def test_average_linkage_is_that_of_the_definition() -> None:
    """On 30 random distances, each number of clusters; scipy's own labels name the same groups."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        above = torch.rand(9, 9, generator=generator, dtype=torch.float64).triu(1)
        distance = above + above.T
        ours = average_linkage(distance)
        joined = linkage(squareform(distance.numpy()), "average")
        assert ours == clusterings(distance.tolist())
        assert [len(clusters) for clusters in ours] == list(range(9, 0, -1))
        for clusters in ours:
            labels = fcluster(joined, len(clusters), "maxclust")
            groups = {frozenset(f for f in range(9) if labels[f] == label) for label in set(labels)}
            assert {frozenset(cluster) for cluster in clusters} == groups


def test_average_linkage_of_one_family_and_of_a_distance_table_with_rounding_errors() -> None:
    """Cosines of computed directions are not quite symmetric, and 1 - cosine can be just below 0."""
    assert average_linkage(torch.zeros(1, 1)) == [[[0]]]
    distance = torch.tensor([[0.0, -1e-16, 0.5], [1e-17, 1e-16, 0.5], [0.5, 0.5, 1.0]], dtype=torch.float64)
    assert average_linkage(distance) == [[[0], [1], [2]], [[0, 1], [2]], [[0, 1, 2]]]


def test_gains_by_hand() -> None:
    """Two families, two directions e1 and e2 without noise, cosine .6 between them. One cluster: its direction is
    (e1 + e2) / |e1 + e2|, of which e1 has sqrt((1 + .6) / 2). Two clusters: 1. Nothing varies within a family."""
    e1, e2 = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    result = found(profile(["a"] * 4 + ["b"] * 5, torch.stack([e1] * 4 + [3 * e2] * 5)))
    assert [step.gain for step in result.curve] == pytest.approx([0.8**0.5, 1.0], abs=1e-6)
    assert [step.behind for step in result.curve] == pytest.approx([1 - 0.8**0.5, 0.0], abs=1e-6)
    assert [step.standard_error for step in result.curve] == pytest.approx([0, 0], abs=1e-6)
    assert result.similarity.flatten().tolist() == pytest.approx([1, 0.6, 0.6, 1], abs=1e-6)
    assert (result.wanted, result.num_experts) == (2, 2)
    one, two = result.experts
    assert (one.nearest, one.farthest) == (pytest.approx((2, 0.6), abs=1e-6), pytest.approx((2, 0.6), abs=1e-6))
    assert (two.number, two.name, two.before.questions, two.before.nats_per_token) == (2, "b", 5, 0.5)
    assert two.before.expected.value == pytest.approx(torch.e**-1)


def test_gains_are_measured_on_questions_that_directions_were_not_found_from() -> None:
    """Pure noise: 24 questions of 120 dimensions have a mean that each of them points along, about 1 / sqrt(24) = .2;
    what was found from the other half, 12, does not. 0 within 4 standard errors of 96 cosines of spread 120^-1/2."""
    result = found(
        profile([f for f in "abcd" for _ in range(24)], torch.randn(96, 120, generator=torch.manual_seed(1)))
    )
    assert result.curve[-1].gain == pytest.approx(0, abs=4 * (96 * 120) ** -0.5)


def test_the_standard_error_against_a_naive_one() -> None:
    """Every question's difference between the best number of clusters and this one, worked out apart with loops."""
    given = planted(2, 2, seed=3, number=6, noise=2.0)
    result = found(given, seed=5)
    u_QP, families = given.directions(), sorted(set(given.families))
    half: dict[int, int] = {}
    generator = torch.Generator().manual_seed(5)
    for family in families:
        places = [q for q, its in enumerate(given.families) if its == family]
        for turn, drawn in enumerate(torch.randperm(6, generator=generator).tolist()):
            half[places[drawn]] = turn % 2
    gains: dict[int, dict[int, float]] = {k: {} for k in range(1, 5)}
    for side in (0, 1):
        mu = {
            f: torch.stack([u_QP[q] for q in half if half[q] == side and given.families[q] == f]).mean(0)
            for f in families
        }
        cosines = torch.tensor(
            [[float(mu[f] @ mu[g] / mu[f].norm() / mu[g].norm()) for g in families] for f in families]
        )
        for clusters in average_linkage(1 - cosines.double()):
            for cluster in clusters:
                direction = torch.stack([mu[families[f]] for f in cluster]).sum(0)
                for q, its in half.items():
                    if its != side and families.index(given.families[q]) in cluster:
                        gains[len(clusters)][q] = float(u_QP[q] @ direction / direction.norm())
    mean = {
        k: sum(sum(g for q, g in told.items() if given.families[q] == f) / 6 for f in families) / 4
        for k, told in gains.items()
    }
    best = max(mean, key=lambda k: mean[k])
    for step in result.curve:
        squares = 0.0
        for f in families:
            apart = torch.tensor([gains[best][q] - gains[step.k][q] for q in half if given.families[q] == f])
            squares += float(apart.double().var(correction=1)) / 6
        assert step.gain == pytest.approx(mean[step.k], abs=1e-9)
        assert step.standard_error == pytest.approx(squares**0.5 / 4, abs=1e-7)


@pytest.mark.parametrize(("k", "per"), [(3, 3), (4, 3), (6, 2)])
def test_planted_directions_are_found(k: int, per: int) -> None:
    """At least 90 % of 50 seeds with the right number and no family in the wrong company."""
    results = [found(planted(k, per, seed), seed) for seed in range(SEEDS)]
    assert sum(result.num_experts == k and is_pure(result, k) for result in results) >= 0.9 * SEEDS
    stable = [found(planted(k, per, seed), seed, resamples=10) for seed in range(3)]
    assert min(result.same_number for result in stable) >= 0.8
    assert min(result.pair_agreement or 0 for result in stable) >= 0.95


def test_the_fewest_clusters_within_one_standard_error_of_the_best_are_taken() -> None:
    """Every family has a little direction of its own, so that more clusters are sometimes best, by less than chance."""
    results = []
    for seed in range(6):
        given, generator = planted(3, 3, seed), torch.Generator().manual_seed(1000 + seed)
        own_FP = 0.7 * 120**-0.5 * torch.randn(9, 120, generator=generator)
        own_QP = own_FP[[int(family[-2:]) for family in given.families]]
        results.append(found(profile(list(given.families), given.gradients["m"] + own_QP), seed))
    for result in results:
        assert result.wanted == min(step.k for step in result.curve if step.behind <= step.standard_error)
    assert [result.wanted for result in results] == [3] * 6
    assert [min(result.curve, key=lambda step: step.behind).k for result in results] == [3, 4, 3, 3, 5, 3]


def test_families_that_are_alike_get_the_fewest_experts_and_it_says_so() -> None:
    results = [found(planted(1, 6, seed), seed, resamples=5) for seed in range(10)]
    assert sum(result.wanted == 1 and result.num_experts == 3 for result in results) >= 9
    told = results[0]
    assert any("no structure was found" in remark for remark in told.remarks())
    assert any("raised to 3" in remark for remark in told.remarks())
    assert min(result.pair_agreement or 0 for result in results) < 0.8, "who is with whom is then chance"


def test_more_than_ten_directions_give_ten_experts() -> None:
    result = found(planted(12, 1, seed=0, noise=1.0))
    assert (result.num_experts, result.wanted, len(result.curve)) == (10, 10, 10)


def test_too_much_noise_is_told_as_instability() -> None:
    result = found(planted(4, 3, seed=0, number=20, noise=8.0), resamples=10)
    assert result.same_number < 0.8
    assert any("not stable" in remark for remark in result.remarks())


def test_where_an_expert_acts() -> None:
    """Gradients of length 5, 4 of it in the second matrix: 16 / 25 of the squares."""
    g = torch.tensor([[4.0, 0.0, 3.0]] * 4 + [[0.0, 1.0, 0.0]] * 4)
    result = found(profile(["a"] * 4 + ["b"] * 4, g, wide=2))
    assert dict(result.experts[0].strongest) == pytest.approx({"second": 0.64, "first": 0.36}, abs=1e-6)
    assert dict(result.experts[1].strongest) == pytest.approx({"second": 1.0, "first": 0.0}, abs=1e-6)


def test_one_family_and_two() -> None:
    one = found(planted(1, 1, seed=0), resamples=3)
    assert (one.num_experts, one.pair_agreement, one.same_number) == (1, None, 1.0)
    assert (one.experts[0].nearest, one.experts[0].farthest) == (None, None)
    two = found(planted(1, 2, seed=0), resamples=3)
    assert (two.num_experts, two.wanted, two.same_number) == (2, 1, 1.0)
    assert any("there was no choice" in remark for remark in two.remarks())
    assert json.loads(json.dumps(shown_discovery(two).as_json(), allow_nan=False))["chosen"] == 2


def test_families_with_few_questions_are_left_out_and_named() -> None:
    few = planted(3, 1, seed=0)
    more = profile([*few.families, *["rare"] * 3], torch.cat([few.gradients["m"], torch.ones(3, 120)]))
    result = found(more)
    assert result.left_out == {"rare": 3}
    assert result.expert_of == {"family 00": 1, "family 01": 2, "family 02": 3}
    assert any("rare (3)" in remark for remark in result.remarks())
    assert result.curve == found(few).curve, "they change nothing for the others"
    with pytest.raises(ValueError, match="takes 4 questions, the most that one has is 3"):
        found(profile(["a"] * 3, torch.ones(3, 5)))
    with pytest.raises(ValueError, match="at least one resample"):
        found(few, resamples=0)


def test_a_question_that_the_model_knows_for_certain_points_nowhere() -> None:
    g = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 0.0]] * 4)
    result = found(profile(["a"] * 4 + ["b"] * 4, g))
    assert [step.gain for step in result.curve] == pytest.approx([0.5, 0.5])
    assert all(isinstance(step, LinkageStep) and step.standard_error == 0 for step in result.curve)


def kinds(number: int) -> list[Question]:
    """Six families, two of each of three kinds: to say a letter again, to say how many there are, and to agree."""
    draw = random.Random(0)
    asked = []
    for family in ("copy 1", "copy 2", "count 1", "count 2", "agree 1", "agree 2"):
        for _ in range(number):
            letter, times = draw.choice("bcdfghkmpt"), draw.randint(1, 4)
            prompt, answer = {
                "copy": (f"Copy: {letter}", letter),
                "count": (f"How many in {' '.join(letter * times)}?", str(times)),
                "agree": (f"Is {letter} a letter?", "yes it is"),
            }[family.split()[0]]
            asked.append(question(prompt, answer, family=family))
    return asked


def test_kinds_of_questions_are_found_in_a_real_model(scalable: SVFModel, tokenizer: Tokenizer) -> None:
    asked = AskedQuestions(kinds(30), tokenizer, 320)
    result = found(measure_profile(scalable, asked), resamples=20)
    assert [expert.families for expert in result.experts] == [
        ("agree 1", "agree 2"), ("copy 1", "copy 2"), ("count 1", "count 2"),
    ]  # fmt: skip
    assert result.wanted == 3
    assert result.same_number >= 0.8
    assert result.experts[0].before.questions == 60
