"""Routers: states and likelihoods one prompt at a time, the linear head against another minimiser, counts by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from tokenizers import Tokenizer

from tests.core.small_cycles import parent
from tests.core.test_character_council import question
from training_core.data.tokenizer import END_OF_TEXT_ID, load_tokenizer
from training_core.evaluation.intervals import wilson
from training_core.nn.cognate import Cognate
from training_core.nn.linear_head import Head, fit_head
from training_core.nn.ternary import inference_copy
from training_core.phases.p7_experts.routing_measurement import ConstantRouter, OracleRouter, measure_routing
from training_core.svf.routing import (
    NONE,
    ClassifierRouter,
    PromptReader,
    PromptRouter,
    final_states,
    prompts_of,
    windows_like,
)

EXPERT_OF = {"sums": 1, "copying": 2}
NAMES = ["sums", "copying"]
ASKED = [
    question("1+1"), question("Copy: a b", "a b", family="copying"), question("What is 17+25?", "42"),
    question("Is it so?", "yes", family="rare"), question("Copy: q", "q", family="copying"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(small_data: dict[str, Path]) -> Tokenizer:
    return load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def model() -> Cognate:
    return inference_copy(parent())


def test_final_states_are_those_of_one_prompt_at_a_time(
    model: Cognate, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By streaming, which knows no padding. Float32 through another order of operations: 1e-4."""
    prompts = prompts_of(ASKED, tokenizer)
    monkeypatch.setattr("training_core.svf.routing.ROWS_AT_ONCE", 2)
    found = final_states(model, prompts)
    for place, prompt in enumerate(prompts):
        state = model.stream()
        with torch.no_grad():
            for token in [END_OF_TEXT_ID, *prompt]:
                model.step(torch.tensor([token]), state)
        assert state.answer is not None
        assert found[place].tolist() == pytest.approx(state.answer[0, 0].tolist(), abs=1e-4)


def test_asking_in_words_against_a_naive_loop(model: Cognate, tokenizer: Tokenizer) -> None:
    """Each name behind each prompt, token by token; 1e-5 of a probability."""
    router = PromptRouter(model, tokenizer, NAMES)
    found = router.probabilities(ASKED)
    read = 0
    for place, asked in enumerate(ASKED):
        told = []
        for name in (NONE, *NAMES):
            ids = [END_OF_TEXT_ID, *tokenizer.encode("Which kind of question is this: sums, copying or other?\n").ids]
            ids += tokenizer.encode(f"Question: {asked.prompt}\nAnswer:").ids
            total = 0.0
            for token in tokenizer.encode(f" {name}").ids:
                with torch.no_grad():
                    total += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
                ids.append(token)
            told.append(total)
            read += len(ids) - 1
        weights = [math.exp(x - max(told)) for x in told]
        assert found[place].tolist() == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-5)
    assert router.tokens_read(ASKED) == read
    assert (router.num_experts, found.shape) == (2, (5, 3))


def test_names_that_cannot_be_told_apart_are_refused(model: Cognate, tokenizer: Tokenizer) -> None:
    for names in ([], ["sums", "sums"], ["sums", NONE]):
        with pytest.raises(ValueError, match="names of their own"):
            PromptRouter(model, tokenizer, names)
    with pytest.raises(ValueError, match="exceeds max_seq_len = 320"):
        PromptRouter(model, tokenizer, NAMES).of_prompts([[5] * 320])
    with pytest.raises(ValueError, match="exceeds max_seq_len = 320"):
        final_states(model, [[5] * 320])
    assert final_states(model, [[5] * 319]).shape == (1, 32)


def rows(number: int, spread: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of very different sizes around three points of 6 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0] * number + [1] * (number // 2) + [2] * (number // 4))
    centres = 2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = spread * torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
    return centres[labels] + noise + 5, labels


def test_the_head_is_the_minimum_that_scipy_finds() -> None:
    """The same loss, written apart in NumPy. A code of int8 is off by scale / 254 at most; the biases make good what
    that does at the mean of the points, and the rest moves no probability by more than .025."""
    y, labels = rows(60)
    head = fit_head(y, labels, 3, penalty=0.01)
    scale = float((y - y.mean(0)).square().mean().sqrt())
    x, hot = ((y - y.mean(0)) / scale).numpy(), np.eye(3)[labels.numpy()]

    def loss(flat: np.ndarray) -> float:
        w, b = flat[:18].reshape(3, 6), flat[18:]
        logits = x @ w.T + b
        top = logits.max(1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        per_class = [-(log_p * hot)[labels.numpy() == c].sum(1).mean() for c in range(3)]
        return float(np.mean(per_class) + 0.005 * (w**2).sum())

    best = minimize(loss, np.zeros(21), method="BFGS", options={"gtol": 1e-6})
    assert head.weights().tolist() == [
        pytest.approx(row, abs=float(np.abs(row).max()) / 254 + 1e-3) for row in (best.x[:18].reshape(3, 6) / scale)
    ]
    expected = torch.tensor(x @ best.x[:18].reshape(3, 6).T + best.x[18:]).softmax(1)
    assert float((head.probabilities(y) - expected).abs().max()) < 0.025
    assert float((head.probabilities(y).argmax(1) == labels).double().mean()) > 0.9


def test_classes_count_alike_however_many_rows_they_have() -> None:
    """Rows that tell nothing: the head says a third for each, not 4 : 2 : 1. Biases are float16."""
    y = torch.zeros(70, 4, dtype=torch.float64)
    y[::2, 0] = 1  # the same in every class
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)
    assert fit_head(y, labels, 3).probabilities(y).flatten().tolist() == pytest.approx([1 / 3] * 210, abs=1e-3)


def test_a_head_is_stored_in_the_bytes_that_it_says(tmp_path: Path) -> None:
    y, labels = rows(40)
    head = fit_head(y, labels, 3)
    assert head.num_bytes == 3 * 6 + 3 * 2 + 3 * 2
    save_file(head.tensors("router."), tmp_path / "head")
    assert sum(t.numel() * t.element_size() for t in load_file(tmp_path / "head").values()) == head.num_bytes
    again = Head.from_tensors(load_file(tmp_path / "head"), "router.")
    assert torch.equal(again.probabilities(y), head.probabilities(y))
    assert torch.equal(fit_head(y, labels, 3).codes_CD, head.codes_CD), "nothing is drawn"


def test_a_head_that_cannot_be_fitted_is_refused() -> None:
    y, labels = rows(40)
    with pytest.raises(ValueError, match="every one of 4 classes needs examples"):
        fit_head(y, labels, 4)
    with pytest.raises(ValueError, match="every one of 2 classes"):
        fit_head(y, labels, 2)
    with pytest.raises(ValueError, match="the penalty must be positive"):
        fit_head(y, labels, 3, penalty=0.0)
    with pytest.raises(ValueError, match="at most 65504: raise the penalty"):
        Head.of(torch.full((2, 3), 1e6), torch.zeros(2))


def test_a_classifier_learns_families_and_text(model: Cognate, tokenizer: Tokenizer) -> None:
    """Of a model that was never trained, on other questions than it was fitted on."""

    def asked(start: int) -> list:  # type: ignore[type-arg]
        return [
            made
            for n in range(start, start + 40)
            for made in (question(f"{n}+{n + 7}"), question(f"Copy: {chr(97 + n % 26)} {n}", family="copying"))
        ]

    fitting, held_out = asked(10), asked(50)
    prompts = prompts_of(fitting, tokenizer)
    tokens = torch.randint(1, 320, (80, 60), generator=torch.Generator().manual_seed(0))
    text = windows_like(prompts, tokens, torch.Generator().manual_seed(1))
    router = ClassifierRouter.fit(model, tokenizer, fitting, EXPERT_OF, text[:40])
    right = torch.tensor([EXPERT_OF[q.family] for q in held_out] + [0] * 40)
    found = torch.cat([router.probabilities(held_out), router.of_prompts(text[40:])])
    routing = measure_routing("classifier", found, right)
    assert routing.accuracy.low > routing.commonest.high, "better than any constant"
    assert routing.accuracy.value > 0.85
    assert router.num_experts == 2
    assert router.head.num_bytes == 3 * 32 + 12
    assert router.tokens_read(held_out[:2]) == sum(len(p) + 1 for p in prompts_of(held_out[:2], tokenizer))
    moved = router.probabilities(held_out[::-1])
    assert moved.flip(0).flatten().tolist() == pytest.approx(
        router.probabilities(held_out).flatten().tolist(), abs=1e-4
    )
    assert isinstance(router, PromptReader)
    assert isinstance(ConstantRouter(0, 2), PromptReader)
    assert not isinstance(OracleRouter(EXPERT_OF, 2), PromptReader)


def test_windows_have_lengths_of_prompts_and_begin_as_the_text_does() -> None:
    prompts = [[1] * 3, [1] * 7]
    text = windows_like(prompts, torch.arange(200).view(20, 10), torch.Generator().manual_seed(0))
    assert {len(window) for window in text} == {3, 7}
    assert all(window == list(range(10 * row, 10 * row + len(window))) for row, window in enumerate(text))


def test_routing_by_hand() -> None:
    """Six questions: two need none, three expert 1, one expert 2."""
    probabilities = torch.tensor(
        [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2], [0.1, 0.7, 0.2], [0.1, 0.6, 0.3]],
        dtype=torch.float64,
    )
    routing = measure_routing("some", probabilities, torch.tensor([0, 0, 1, 1, 1, 2]))
    assert routing.confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 1, 0]]
    assert routing.accuracy == wilson(3, 6)
    assert routing.commonest == wilson(3, 6)
    assert routing.recalls == (wilson(1, 2), wilson(2, 3), wilson(0, 1))
    assert routing.right_probability == pytest.approx((0.6 + 0.2 + 0.8 + 0.4 + 0.7 + 0.3) / 6)
    assert routing.entropy_bits == pytest.approx(-(1 / 3) * math.log2(1 / 3) - (2 / 3) * math.log2(2 / 3))
    assert routing.always_picks is None
    json.dumps(routing.document(), allow_nan=False)


def test_a_router_that_always_picks_one_is_called_that() -> None:
    constant, oracle = ConstantRouter(1, 3), OracleRouter(EXPERT_OF, 3)
    right = oracle.probabilities(ASKED).argmax(1)
    assert right.tolist() == [1, 2, 1, 0, 2]
    told = measure_routing(constant.name, constant.probabilities(ASKED), right)
    assert (told.always_picks, told.entropy_bits, told.accuracy) == (1, 0.0, wilson(2, 5))
    assert told.recalls[3] is None
    best = measure_routing(oracle.name, oracle.probabilities(ASKED), right)
    assert (best.accuracy, best.always_picks) == (wilson(5, 5), None)
    assert (oracle.tokens_read(ASKED), constant.tokens_read(ASKED)) == (0, 0)
    with pytest.raises(ValueError, match="must lie in 0 .. 3, got 4"):
        ConstantRouter(4, 3)
    with pytest.raises(ValueError, match="lies in 0 .. 3"):
        measure_routing("none", constant.probabilities([]), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="lies in 0 .. 3"):
        measure_routing("none", constant.probabilities(ASKED), torch.tensor([0, 0, 0, 0, 4]))


def test_batches_do_not_matter_to_the_classifier(
    model: Cognate, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(ASKED, tokenizer)
    whole = final_states(model, prompts)
    monkeypatch.setattr("training_core.svf.routing.ROWS_AT_ONCE", 1)
    assert final_states(model, prompts).flatten().tolist() == pytest.approx(whole.flatten().tolist(), abs=1e-4)
