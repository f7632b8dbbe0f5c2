"""Two passes: weights by hand, each question as if alone, and the model as it is where no expert has weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tests.core.small_cycles import parent
from tests.core.test_character_council import question
from training_core.data.tokenizer import load_tokenizer
from training_core.nn.linear_head import Head
from training_core.nn.svf import Expert, SVFModel, mixture
from training_core.nn.ternary import inference_copy
from training_core.phases.p7_experts.routing_measurement import ConstantRouter, OracleRouter
from training_core.phases.p7_experts.two_pass import TwoPass, composed, sparse_weights
from training_core.svf.routing import ClassifierRouter, final_states, prompts_of
from training_core.tasks.questions.likelihood import AskedQuestions, example_of, measure_likelihoods
from training_core.text.generation import generate

EXPERT_OF = {"sums": 1, "copying": 2}
ASKED = [
    question("1+1"), question("Copy: a b", "a b", family="copying"), question("What is 17+25?", "42"),
    question("Is it so?", "yes", family="rare"), question("Copy: q", "q", family="copying"), question("9-8", "1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(small_data: dict[str, Path]) -> Tokenizer:
    return load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def scalable() -> SVFModel:
    return SVFModel(parent())


@pytest.fixture(scope="module")
def experts(scalable: SVFModel) -> list[Expert]:
    generator = torch.Generator().manual_seed(0)
    return [
        Expert.of(
            {n: (0.5 * torch.randn(s.s_R.shape, generator=generator)).exp() for n, s in scalable.singular.items()},
            scalable.singular,
        )
        for _ in range(2)
    ]


@pytest.fixture
def router(scalable: SVFModel, tokenizer: Tokenizer) -> ClassifierRouter:
    """A head that nobody fitted, whose choices differ from question to question."""
    weights = 3 * torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    middle = final_states(scalable.model, prompts_of(ASKED, tokenizer)).mean(0).float()
    return ClassifierRouter(scalable.model, tokenizer, Head.of(weights, -weights @ middle))


def test_weights_by_hand() -> None:
    """At temperature .5 probabilities are squared before they are normalised."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert sparse_weights(p).tolist() == [[0, 0], [0, 1], [0, 0], [1, 0]]
    two = sparse_weights(p, top=2)
    assert two.flatten().tolist() == pytest.approx([0.3 / 0.8, 0, 0.2 / 0.9, 0.7 / 0.9, 0.5, 0, 1, 0])
    soft = sparse_weights(p, top=3, temperature=0.5)
    assert soft[0].tolist() == pytest.approx([0.09 / 0.38, 0.04 / 0.38])
    assert torch.equal(sparse_weights(p, top=9), sparse_weights(p, top=3))
    for top, temperature in ((0, 1.0), (1, 0.0), (1, float("nan"))):
        with pytest.raises(ValueError, match="top must be at least 1 and the temperature positive"):
            sparse_weights(p, top, temperature)


def test_without_weight_the_model_is_what_it_was(
    scalable: SVFModel, experts: list[Expert], tokenizer: Tokenizer
) -> None:
    """In a batch through U S V^T, in float32; alone bit for bit."""
    inference = TwoPass(scalable, experts, ConstantRouter(0, 2))
    asked = AskedQuestions(ASKED, tokenizer, 320)
    expected = measure_likelihoods(parent(), tokenizer, ASKED)
    told = inference.likelihoods(asked)
    assert told.log_prob_Q.tolist() == pytest.approx(expected.log_prob_Q.tolist(), rel=1e-5)
    tokens = torch.tensor([prompts_of(ASKED, tokenizer)[1]])
    with inference.speaker(tokens[0].tolist()) as model, torch.no_grad():
        assert torch.equal(model(tokens).logits, inference_copy(parent())(tokens).logits)


@pytest.mark.parametrize(("top", "temperature"), [(1, 1.0), (3, 0.7)])
def test_each_question_is_answered_as_if_it_were_alone(
    scalable: SVFModel,
    experts: list[Expert],
    router: ClassifierRouter,
    tokenizer: Tokenizer,
    top: int,
    temperature: float,
) -> None:
    """Against W' written down for one question at a time, 1-D; and permuted. Float32: 1e-4 nats."""
    inference = TwoPass(scalable, experts, router, top, temperature)
    weights_QK = inference.weights(ASKED)
    assert len({tuple(row) for row in weights_QK.tolist()}) > 1
    told = inference.likelihoods(AskedQuestions(ASKED, tokenizer, 320))
    for place, asked in enumerate(ASKED):
        with scalable.using(mixture(experts, weights_QK[place])) as model:
            alone = measure_likelihoods(model, tokenizer, [asked])
        assert float(told.log_prob_Q[place]) == pytest.approx(float(alone.log_prob_Q), abs=1e-4)
    order = [4, 2, 0, 5, 1, 3]
    moved = inference.likelihoods(AskedQuestions([ASKED[i] for i in order], tokenizer, 320))
    assert moved.log_prob_Q.tolist() == pytest.approx(told.log_prob_Q[order].tolist(), abs=1e-4)
    plain = measure_likelihoods(parent(), tokenizer, ASKED)
    assert float((told.log_prob_Q - plain.log_prob_Q).abs().max()) > 0.01, "experts change something"


def test_the_oracle_gives_each_question_its_expert(
    scalable: SVFModel, experts: list[Expert], tokenizer: Tokenizer
) -> None:
    inference = TwoPass(scalable, experts, OracleRouter(EXPERT_OF, 2))
    assert inference.weights(ASKED).tolist() == [[1, 0], [0, 1], [1, 0], [0, 0], [0, 1], [1, 0]]
    told = inference.likelihoods(AskedQuestions(ASKED, tokenizer, 320))
    with scalable.using(experts[1].multipliers()) as model:
        second = measure_likelihoods(model, tokenizer, [ASKED[1], ASKED[4]])
    assert told.log_prob_Q[[1, 4]].tolist() == pytest.approx(second.log_prob_Q.tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="'oracle' reads none"), inference.speaker([5, 6]):
        pass


def test_a_text_is_streamed_from_matrices_that_are_composed_once(
    scalable: SVFModel, experts: list[Expert], router: ClassifierRouter, tokenizer: Tokenizer
) -> None:
    """Token by token the same as with multipliers in place, bit for bit; behind it the model is what it was."""
    inference = TwoPass(scalable, experts, router, top=3)
    prompt = prompts_of(ASKED, tokenizer)[2]
    weights_K = inference.weights([ASKED[2]])[0]
    assert bool((weights_K > 0).all())

    def logits(model: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            return model(torch.tensor([prompt])).logits  # type: ignore[no-any-return]

    with scalable.using(mixture(experts, weights_K)) as model:
        expected = logits(model)
    before = logits(scalable.model)
    with inference.speaker(prompt) as model:
        assert torch.equal(logits(model), expected)
        assert all(layer.multipliers is None for layer in scalable.layers.values())
        text = "".join(generate(model, tokenizer, "Question: 1+1\nAnswer:", max_tokens=5))
        assert isinstance(text, str)
    assert not torch.equal(before, expected)
    assert torch.equal(logits(scalable.model), before)


def test_a_failure_while_composed_leaves_the_model_as_it_was(scalable: SVFModel, experts: list[Expert]) -> None:
    weights = {name: layer.weight for name, layer in scalable.layers.items()}

    def fail() -> None:
        with composed(scalable, experts[0].multipliers()):
            assert all(layer.weight is not weights[name] for name, layer in scalable.layers.items())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(layer.weight is weights[name] for name, layer in scalable.layers.items())


def test_routing_reads_the_model_as_it_is_whatever_is_set(
    scalable: SVFModel, experts: list[Expert], router: ClassifierRouter
) -> None:
    inference = TwoPass(scalable, experts, router, top=3)
    expected = inference.weights(ASKED)
    with scalable.using(experts[0].multipliers()):
        assert not torch.equal(router.probabilities(ASKED)[:, 1:].float(), expected)
        assert torch.equal(inference.weights(ASKED), expected)


def test_cost_counts_the_tokens_of_both_passes(
    scalable: SVFModel, experts: list[Expert], router: ClassifierRouter, tokenizer: Tokenizer
) -> None:
    """The second pass reads END_OF_TEXT, the prompt, and the completion but for its last token."""
    cost = TwoPass(scalable, experts, router).cost(AskedQuestions(ASKED, tokenizer, 320), repeats=3)
    examples = [example_of(asked, tokenizer) for asked in ASKED]
    assert cost.questions == 6
    assert cost.first_tokens == sum(len(e.prompt) + 1 for e in examples)
    assert cost.second_tokens == sum(len(e.prompt) + len(e.completion) for e in examples)
    assert min(cost.first_s, cost.second_s, cost.plain_s) > 0
    assert cost.relative == (cost.first_s + cost.second_s) / cost.plain_s
    with pytest.raises(ValueError, match="at least one repeat, got 0"):
        TwoPass(scalable, experts, router).cost(AskedQuestions(ASKED, tokenizer, 320), repeats=0)


def test_a_router_of_other_experts_is_refused(scalable: SVFModel, experts: list[Expert]) -> None:
    with pytest.raises(ValueError, match="as many experts as there are, 1, but knows 2"):
        TwoPass(scalable, experts[:1], ConstantRouter(0, 2))
    with pytest.raises(ValueError, match="as many experts as there are, 0, but knows 0"):
        TwoPass(scalable, [], ConstantRouter(0, 0))
