"""Experts that learn: the estimator against every text that a policy can write, the divergence, planted tasks, resuming
after a stop, and low-rank adapters in as many bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from forge_resources.sandbox import open_sandbox
from tests.oracles.singular_value_reference import enumerate_sequences
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.distill.lora import low_rank
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.svf import SVFModel
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phases.p7_experts.lora_baseline import adapter_bytes, affordable, learn_low_rank
from training_core.phases.p7_experts.reinforce import RewardObjective, advantages, learn_by_reward, own_tokens
from training_core.reporting import SilentReporter
from training_core.svf.supervised import (
    CompletionObjective,
    DrawNumbers,
    ExpertLearningConfig,
    Learned,
    divergence_of,
    learn_supervised,
    read,
)
from training_core.tasks.questions.attempts import Answerer
from training_core.tasks.questions.likelihood import example_of, measure_likelihoods
from training_core.tasks.questions.question import Provenance, Question, normalise_answer
from training_core.tasks.questions.sft_objective import Example, rows_of
from training_core.tasks.questions.tools import ToolBox

SHAPE = {
    "d_model": 16, "num_layers": 2, "num_core_layers": 1, "num_heads": 2, "d_ff": 24, "window": 16, "max_seq_len": 32,
    "memory_layers": [], "num_supervision": 2, "halt_threshold": 0.5,
}  # fmt: skip
WORDS = ("<|endoftext|>", "[UNK]", "a", "b", "c")


def question(prompt: str, answer: str) -> Question:
    return Question(1, "letters", prompt, answer, Provenance("generator", "by hand", 1, "0" * 64), "exact")


QUESTIONS = [question("a b", "a"), question("b c c", "b")]
PLANTED = [question(prompt, "c") for prompt in ("a a", "b a c", "c b", "b b a")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Five tokens, so that everything a policy can write can be enumerated."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.fixture(scope="module")
def tools() -> Iterator[ToolBox]:
    with open_sandbox("embedded") as sandbox:
        yield ToolBox(sandbox)


def model() -> Cognate:
    """Ternary, random, with perceptrons that count, and two supervision steps of which a token takes one or both."""
    torch.manual_seed(3)
    allowed = CognateConfig(vocab_size=258, **SHAPE)  # type: ignore[arg-type]
    made = Cognate(allowed.model_copy(update={"vocab_size": len(WORDS)}))
    torch.nn.init.normal_(made.embedding.weight, std=0.2)
    torch.nn.init.normal_(made.halt_head.weight, std=1.0)
    torch.nn.init.zeros_(made.halt_head.bias)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("mlp.down.weight"):
                weight.mul_(20)
    make_ternary(made, TernarySettings())
    return made.eval()


@pytest.fixture
def scalable() -> SVFModel:
    return SVFModel(model())


def somewhere(scalable: SVFModel, spread: float = 1.0) -> Cognate:
    """A trainable model that is not at its start."""
    trained = scalable.trainable()
    generator = torch.Generator().manual_seed(1)
    for name in scalable.layers:
        trained.get_parameter(f"{name}.p").data.normal_(std=spread, generator=generator)
    return trained


def gradient(trained: Cognate, loss: Tensor) -> Tensor:
    """In every p, one vector."""
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    return torch.cat([g.double() for g in torch.autograd.grad(loss, parameters)])


def config(**changes: object) -> ExpertLearningConfig:
    small = {
        "supervised_steps": 12, "supervised_batch": 3, "reward_steps": 6, "reward_batch": 3, "reward_max_tokens": 2,
        "checkpoint_interval_s": 0.0,
    }  # fmt: skip
    return ExpertLearningConfig(**small | changes)  # type: ignore[arg-type]


def examples(tokenizer: Tokenizer) -> list[Example]:
    return [example_of(each, tokenizer) for each in PLANTED]


# -- reward ----------------------------------------------------------------------------------------------------------


def exact_objective(trained: Cognate, tokenizer: Tokenizer, asked: Question, most: int) -> tuple[Tensor, float]:
    """E[r] over every text with its graph, and the sum of their probabilities."""
    prompt = [END_OF_TEXT_ID, *tokenizer.encode(f"Question: {asked.prompt}\nAnswer:").ids]

    def log_probs(written: tuple[int, ...]) -> Tensor:
        return trained(torch.tensor([[*prompt, *written]])).logits[0, -1].double().log_softmax(-1)

    total, mass = torch.zeros((), dtype=torch.float64), 0.0
    for text, log_prob in enumerate_sequences(log_probs, END_OF_TEXT_ID, most):  # type: ignore[arg-type]
        words = " ".join(WORDS[token] for token in text if token != END_OF_TEXT_ID)
        total = total + log_prob.exp() * (1.0 if normalise_answer(words) == asked.answer else -1.0)
        mass += float(log_prob.detach().exp())
    return total, mass


@pytest.mark.parametrize(("baseline", "attempts"), [("none", 1), ("group", 4)])
def test_the_gradient_is_that_of_the_expected_reward(
    scalable: SVFModel, tokenizer: Tokenizer, tools: ToolBox, baseline: str, attempts: int
) -> None:
    """40 batches: their mean is within 3 standard errors along the true gradient, and within 4 in every
    coordinate (96 of them, correlated)."""
    trained = somewhere(scalable)
    found = [exact_objective(trained, tokenizer, asked, 2) for asked in QUESTIONS]
    assert [mass for _, mass in found] == pytest.approx([1.0, 1.0], abs=1e-6)
    truth = gradient(trained, -sum(value for value, _ in found) / 2)  # type: ignore[arg-type]
    settings = config(reward_kl_weight=0.0, reward_baseline=baseline, reward_attempts=attempts)
    objective = RewardObjective(QUESTIONS, tokenizer, tools, scalable.plain(), settings)
    batch = torch.arange(2).repeat(40 // attempts)
    drawn = torch.stack(
        [
            gradient(trained, objective(trained, batch, None, torch.Generator().manual_seed(seed)).loss)
            for seed in range(40)
        ]
    )
    along = drawn @ truth / truth.norm()
    error = along.std() / len(along) ** 0.5
    assert abs(float(along.mean() - truth.norm())) < 3 * float(error)
    assert float(error) < 0.3 * float(truth.norm()), "the standard error tells the gradient from none"
    z = (drawn.mean(0) - truth) / (drawn.std(0) / len(drawn) ** 0.5)
    assert float(z.abs().max()) < 4


def test_rewards_are_compared_with_nothing_or_with_the_others() -> None:
    rewards = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    assert torch.equal(advantages(rewards, "none"), rewards)
    by_hand = [[2.0, -2 / 3, -2 / 3, -2 / 3], [0.0, 0.0, 0.0, 0.0]]  # 1 - (-1), -1 - (1 - 1 - 1) / 3
    assert torch.allclose(advantages(rewards, "group"), torch.tensor(by_hand))


def test_attempts_are_drawn_from_the_policy_that_is_scored(
    scalable: SVFModel, tokenizer: Tokenizer, tools: ToolBox
) -> None:
    """The log-probabilities that streaming gave, W' written down once, are those of the trained graph; also after a
    step."""
    trained = somewhere(scalable)
    objective = RewardObjective(QUESTIONS, tokenizer, tools, scalable.plain(), config())
    for seed in range(2):
        attempts = objective._draw(trained, [0, 1, 0], torch.Generator().manual_seed(seed))
        found = read(trained, rows_of([own_tokens(attempt) for attempt in attempts]))
        theirs = torch.tensor([value for attempt in attempts for value in attempt.log_probs])
        assert torch.allclose(found.log_probs_N, theirs, rtol=0, atol=2e-5)
        assert found.row_N.tolist() == [row for row, a in enumerate(attempts) for _ in a.log_probs]
        with torch.no_grad():
            trained.get_parameter("core.0.mlp.down.p").add_(torch.linspace(-2, 2, 16))
    assert isinstance(objective._answerer, Answerer)
    assert objective._answerer.model is not trained


def test_the_loss_by_hand(scalable: SVFModel, tokenizer: Tokenizer, tools: ToolBox) -> None:
    """One attempt after the other; the divergence is a sum over tokens and a mean over attempts."""
    trained, reference = somewhere(scalable), scalable.plain()
    losses = []
    for weight in (0.0, 0.5):
        objective = RewardObjective(QUESTIONS, tokenizer, tools, reference, config(reward_kl_weight=weight))
        losses.append(objective(trained, torch.tensor([0, 1, 1, 0]), None, torch.Generator().manual_seed(2)))
    attempts = objective._draw(trained, [0, 1, 1, 0], torch.Generator().manual_seed(2))
    policy, kl = 0.0, 0.0
    for attempt in attempts:
        ids = torch.tensor([[END_OF_TEXT_ID, *attempt.prompt_ids, *attempt.completion_ids]])
        start = len(attempt.prompt_ids)
        log_p = trained(ids[:, :-1]).logits[0, start:].detach().double().log_softmax(-1)
        log_q = reference(ids[:, :-1]).logits[0, start:].double().log_softmax(-1)
        policy -= (1 if attempt.right else -1) * sum(float(log_p[t, i]) for t, i in enumerate(attempt.completion_ids))
        kl += float((log_q.exp() * (log_q - log_p)).sum())
    assert kl > 0.1
    assert losses[0].loss.item() == pytest.approx(policy / 4, abs=1e-5)
    assert losses[1].loss.item() == pytest.approx((policy + 0.5 * kl) / 4, abs=1e-5)
    assert float(losses[1].metrics["kl"]) == pytest.approx(kl / 4, abs=1e-5)
    assert float(losses[0].metrics["reward"]) == sum(1 if a.right else -1 for a in attempts) / 4


def test_reward_alone_teaches_what_is_asked(scalable: SVFModel, tokenizer: Tokenizer, tools: ToolBox) -> None:
    """One token to write: the right one is drawn once in eleven attempts before, and most of the time afterwards."""

    def expected(adapted: Cognate) -> float:
        with torch.no_grad():
            found = [exact_objective(adapted, tokenizer, asked, 1)[0] for asked in PLANTED]
        return (1 + float(sum(found)) / len(found)) / 2

    before = expected(scalable.model)
    assert 0.05 < before < 0.15
    settings = config(
        reward_steps=24, reward_batch=4, reward_attempts=4, reward_lr=0.3, reward_kl_weight=0.0, reward_max_tokens=1
    )
    learned = learn_by_reward(scalable, PLANTED, tokenizer, tools, settings, SilentReporter())
    with scalable.using(learned.expert.multipliers()) as adapted:
        assert expected(adapted) > 0.5
    curve = learned.curve("reward")
    assert curve["step"] == list(range(24))
    assert sum(curve["reward"][-5:]) > sum(curve["reward"][:5]) + 2
    assert expected(scalable.model) == before
    assert learned.kl > 0.05


# -- worked completions ----------------------------------------------------------------------------------------------


def test_the_divergence_and_its_gradient(scalable: SVFModel, tokenizer: Tokenizer) -> None:
    """Against the sum over the vocabulary, and against differences along a direction (float32: 2 %)."""
    rows = rows_of([Example((2, 3), (4, 2, 0), (True, False, True)), Example((3,), (2, 0), (True, True))])
    trained, reference = somewhere(scalable), scalable.plain()
    found = read(trained, rows).kl(reference, rows)
    log_q = reference(rows.inputs_BS).logits.double().log_softmax(-1)[rows.mask_BS]
    log_p = trained(rows.inputs_BS).logits.double().log_softmax(-1)[rows.mask_BS]
    naive = (log_q.exp() * (log_q - log_p)).sum(-1)
    assert torch.allclose(found.double(), naive, atol=1e-5)
    slope = gradient(trained, found.sum())
    assert torch.allclose(slope, gradient(trained, naive.sum()), atol=1e-4)
    direction = slope / slope.norm()
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(trained)
        start = 0
        for parameter in (parameter for parameter in moved.parameters() if parameter.requires_grad):
            parameter.data += sign * 0.02 * direction[start : start + parameter.numel()].float()
            start += parameter.numel()
        values.append(float(read(moved, rows).kl(reference, rows).sum().detach()))
    assert (values[0] - values[1]) / 0.04 == pytest.approx(float(slope.norm()), rel=0.02)


def test_the_loss_on_completions_reaches_p_alone(scalable: SVFModel, tokenizer: Tokenizer) -> None:
    trained, shown = somewhere(scalable), examples(tokenizer)
    objective = CompletionObjective(shown, scalable.plain(), 0.5)
    result = objective(trained, torch.tensor([1, 3]), None, torch.Generator())
    losses, divergences = [], []
    for example in (shown[1], shown[3]):
        found = read(trained, rows_of([example]))
        losses += (-found.log_probs_N).tolist()
        divergences += found.kl(scalable.plain(), rows_of([example])).tolist()
    expected = sum(losses) / len(losses) + 0.5 * sum(divergences) / len(divergences)
    assert result.loss.item() == pytest.approx(expected, abs=1e-5)
    result.loss.backward()  # type: ignore[no-untyped-call]
    reached = {n for n, parameter in trained.named_parameters() if parameter.grad is not None}
    assert reached == {f"{name}.p" for name in scalable.layers}


def test_completions_teach_and_the_model_stays(scalable: SVFModel, tokenizer: Tokenizer) -> None:
    tokens = torch.tensor([[0, 2, 3, 4, 1]])
    before, logits = copy.deepcopy(scalable.model.state_dict()), scalable.model(tokens).logits
    shown = examples(tokenizer)
    free, held = (
        learn_supervised(
            scalable, shown, config(supervised_steps=20, supervised_kl_weight=weight, supervised_lr=0.3),
            SilentReporter(),
        )
        for weight in (0.0, 3.0)
    )  # fmt: skip
    with scalable.using(free.expert.multipliers()) as adapted:
        after = measure_likelihoods(adapted, tokenizer, PLANTED).expected().value
    assert after > measure_likelihoods(scalable.model, tokenizer, PLANTED).expected().value + 0.25
    loss = free.curve("loss")["loss"]
    assert loss[-1] < 0.6 * loss[0]
    assert held.kl < 0.5 * free.kl
    assert torch.equal(scalable.model(tokens).logits, logits)
    assert all(torch.equal(t, before[n]) for n, t in scalable.model.state_dict().items())


def test_the_divergence_of_a_stored_expert(scalable: SVFModel, tokenizer: Tokenizer) -> None:
    shown = examples(tokenizer)
    stored = scalable.expert_of(somewhere(scalable))
    with torch.no_grad(), scalable.using(stored.multipliers()) as adapted:
        rows = [rows_of([example]) for example in shown]
        sums = [read(adapted, each).kl(scalable.plain(), each) for each in rows]
    expected = float(torch.cat(sums).mean())
    assert divergence_of(scalable, stored, shown) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.05


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


@pytest.mark.parametrize("method", ["supervised", "reward"])
def test_a_run_resumes_bit_for_bit(
    scalable: SVFModel, tokenizer: Tokenizer, tools: ToolBox, method: str, tmp_path: Path
) -> None:
    settings = config(supervised_steps=4, reward_steps=4, reward_batch=2, reward_baseline="group", reward_attempts=2)

    def learn(reporter: SilentReporter, folder: str, settings: ExpertLearningConfig = settings) -> Learned:
        where = tmp_path / folder
        if method == "supervised":
            return learn_supervised(scalable, examples(tokenizer), settings, reporter, checkpoint=where)
        return learn_by_reward(scalable, PLANTED, tokenizer, tools, settings, reporter, checkpoint=where)

    undisturbed = learn(SilentReporter(), "undisturbed")
    with pytest.raises(Interrupted):
        learn(StopsAt(3), "stopped")
    reporter = StopsAt(0)
    resumed = learn(reporter, "stopped")
    assert reporter.steps == [3, 4], "the last resume point is that of step 2"
    for name, code in undisturbed.expert.codes.items():
        assert torch.equal(code, resumed.expert.codes[name])
        assert torch.equal(undisturbed.expert.spreads[name], resumed.expert.spreads[name])
    assert undisturbed.training.history["loss"] == resumed.training.history["loss"]
    assert any(bool(code.any()) for code in undisturbed.expert.codes.values())
    other = StopsAt(0)
    learn(other, "stopped", settings.model_copy(update={"seed": 1}))
    assert other.steps == [1, 2, 3, 4], "another configuration begins anew"
    layer = scalable.layers["core.0.mlp.up"]
    layer.weight = 0.9 * layer.weight
    changed = StopsAt(0)
    learn(changed, "stopped", settings.model_copy(update={"seed": 1}))
    assert changed.steps[0] == 1, "so do other matrices"


def test_numbers_come_once_until_they_run_out() -> None:
    few, many = DrawNumbers(3, 7), DrawNumbers(50, 7)
    drawn = few(torch.Generator().manual_seed(0)).tolist()
    assert len(drawn) == 7
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [0, 1, 2]
    assert len(set(many(torch.Generator().manual_seed(0)).tolist())) == 7


def test_nothing_to_learn_from_and_a_baseline_without_others(
    scalable: SVFModel, tokenizer: Tokenizer, tools: ToolBox
) -> None:
    with pytest.raises(ValueError, match="no worked completions"):
        learn_supervised(scalable, [], config(), SilentReporter())
    with pytest.raises(ValueError, match="no questions to attempt"):
        learn_by_reward(scalable, [], tokenizer, tools, config(), SilentReporter())
    with pytest.raises(ValueError, match="reward_attempts is 1: raise it to 2"):
        config(reward_baseline="group")


# -- low-rank adapters in as many bytes ------------------------------------------------------------------------------


def test_adapters_fit_into_the_bytes_of_an_expert(scalable: SVFModel, tokenizer: Tokenizer) -> None:
    """6 matrices of (24, 16) or (16, 24): an expert has 18 bytes for each, an adapter 44, so that 2 have one."""
    expert = scalable.expert_of(somewhere(scalable))
    assert expert.num_bytes == 6 * 18
    assert adapter_bytes(torch.zeros(24, 16)) == 44
    rival = learn_low_rank(scalable, examples(tokenizer), expert.num_bytes, config(), SilentReporter())
    assert rival.layers == ("core.0.mlp.down", "prelude.0.mlp.down")
    assert rival.num_bytes == 2 * 44 <= expert.num_bytes
    for name, layer in scalable.layers.items():
        moved = (rival.model.get_submodule(name).weight - layer.weight).double()  # type: ignore[operator]
        if name not in rival.layers:
            assert not moved.any(), name
            continue
        singular = torch.linalg.svdvals(moved)
        assert singular[0] > 1e-3
        assert singular[1] < 1e-6 + 1e-5 * float(singular[0]), "rank 1 and float32 rounding"
        codes = 127 * moved / moved.abs().max()  # of the row of the largest entry of B: a multiple of A's codes
        row = codes[codes.abs().max(1).values.argmax()]
        assert torch.allclose(row, row.round(), atol=2e-3), "A has 255 values"
    with pytest.raises(ValueError, match="needs 44 bytes and there are 43"):
        affordable(scalable.layers, 43)


def test_adapters_learn_and_resume(scalable: SVFModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
    before = measure_likelihoods(scalable.model, tokenizer, PLANTED).expected().value
    settings, shown = config(supervised_steps=20, low_rank_lr=0.1), examples(tokenizer)
    undisturbed = learn_low_rank(scalable, shown, 108, settings, SilentReporter())
    assert measure_likelihoods(undisturbed.model, tokenizer, PLANTED).expected().value > 5 * before
    assert measure_likelihoods(scalable.model, tokenizer, PLANTED).expected().value == before
    with pytest.raises(Interrupted):
        learn_low_rank(scalable, shown, 108, settings, StopsAt(15), checkpoint=tmp_path)
    resumed = learn_low_rank(scalable, shown, 108, settings, reporter := StopsAt(0), checkpoint=tmp_path)
    assert reporter.steps[0] == 15
    for name in undisturbed.layers:
        theirs = resumed.model.get_submodule(name).weight
        assert torch.equal(undisturbed.model.get_submodule(name).weight, theirs)  # type: ignore[arg-type]


def test_a_caller_chooses_which_layers_have_adapters() -> None:
    adapted = model()
    before = copy.deepcopy(adapted.state_dict())
    layers = {name: adapted.get_submodule(name) for name in ("core.0.mlp.up", "prelude.0.mlp.down")}
    with low_rank(adapted, 2, 2.0, torch.Generator().manual_seed(0), layers) as adapters:
        assert [tuple(adapter.B.shape) for adapter in adapters] == [(24, 2), (16, 2)]
        for adapter in adapters:
            torch.nn.init.ones_(adapter.B)
        trained = {n for n, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert len(trained) == 4
        assert all(name.startswith(tuple(layers)) for name in trained)
    changed = {n for n, t in adapted.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {f"{name}.weight" for name in layers}
    with (
        pytest.raises(ValueError, match="rank = 17 exceeds what core.0.mlp.up"),
        low_rank(adapted, 17, 1.0, torch.Generator(), layers),
    ):
        pass
