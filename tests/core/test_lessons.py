"""Lessons against a naive loop without padding: what is learned, what is only read, replay and dreams, exact tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F

from tests.core.test_baking import ids, make_model, texts
from training_core.nn.cognate import Cognate
from training_core.tasks.questions.sft_objective import (
    BesideText,
    Example,
    LessonObjective,
    Memory,
    draw_memories,
    rows_of,
)
from training_core.training.loop import StepResult
from training_core.training.objective import HALT_WEIGHT

EXAMPLES = [
    Example(tuple(ids(3, 1)), (5, 6, 7, 8, 0), (True, True, False, False, True)),
    Example(tuple(ids(6, 2)), (9, 0), (True, True)),
    Example((), (11, 12, 13), (False, True, False)),
]


def naive(model: Cognate, example: Example, teacher: Cognate | None = None) -> tuple[list[float], list[float]]:
    """Loss and halting loss of every learned token, from one unpadded row."""
    row = [0, *example.prompt, *example.completion]
    losses, halting = [], []
    with torch.no_grad():
        h = model.encode(torch.tensor([row[:-1]]))
        y = model.supervise(h, model.start(h)).y
        logits, halt = model.logits(y)[0], model.halt(y)[0]
        other = None if teacher is None else teacher(torch.tensor([row[:-1]])).logits[0]
    for place, learned in enumerate(example.learned):
        at = len(example.prompt) + place
        if not learned:
            continue
        log_p = logits[at].double().log_softmax(-1)
        if other is None:
            losses.append(-float(log_p[row[at + 1]]))
        else:
            log_t = other[at].double().log_softmax(-1)
            losses.append(float((log_t.exp() * (log_t - log_p)).sum()))
        right = float(logits[at].argmax() == row[at + 1])
        halting.append(float(F.binary_cross_entropy_with_logits(halt[at], torch.tensor(right))))
    return losses, halting


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def flat(lists: Iterable[list[float]]) -> list[float]:
    return [value for values in lists for value in values]


def step(objective: LessonObjective | BesideText, model: Cognate, numbers: list[int]) -> StepResult:
    return objective(model, torch.tensor(numbers), None, torch.Generator().manual_seed(4))


def test_rows_by_hand() -> None:
    rows = rows_of([Example((7,), (8, 0), (True, True)), Example((5, 6), (9, 4, 0), (True, False, True))])
    assert rows.inputs_BS.tolist() == [[0, 7, 8, 0, 0], [0, 5, 6, 9, 4]]
    assert rows.targets_BS.tolist() == [[7, 8, 0, 0, 0], [5, 6, 9, 4, 0]]
    assert rows.mask_BS.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 0, 1]]


def test_loss_equals_a_naive_loop() -> None:
    model = make_model()
    losses, halting = zip(*(naive(model, e) for e in EXAMPLES), strict=True)
    expected = mean(flat(losses)) + HALT_WEIGHT * mean(flat(halting))
    assert step(LessonObjective(EXAMPLES), model, [0, 1, 2]).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dream", [False, True])
def test_memories_equal_a_naive_loop(dream: bool) -> None:
    model, teacher = make_model(), make_model(seed=3)
    memory = Memory(EXAMPLES[1:], 3, 0.7, teacher if dream else None)  # all three learned tokens of both
    result = step(LessonObjective(EXAMPLES[:1], memory), model, [0])
    first, first_halting = naive(model, EXAMPLES[0])
    rehearsed, halting = zip(*(naive(model, e, memory.teacher) for e in EXAMPLES[1:]), strict=True)
    expected = mean(first) + HALT_WEIGHT * mean(first_halting)
    expected += 0.7 * (mean(flat(rehearsed)) + HALT_WEIGHT * mean(flat(halting)))
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_dream_of_the_model_itself_has_no_gradient() -> None:
    model = make_model()
    memory = Memory(EXAMPLES, 5, 1.0, copy.deepcopy(model))
    result = step(LessonObjective(EXAMPLES, memory), model, [0])
    assert float(result.metrics["memory_loss"]) == pytest.approx(0.0, abs=1e-6)
    assert float(result.metrics["examples_loss"]) > 1.0


def test_tool_tokens_are_read_but_not_learned() -> None:
    """Another token at a place that is not learned changes what follows, and scores of its own are not worked out."""
    model = make_model()
    example = Example((7,), (8, 9, 10), (True, False, True))
    other = Example((7,), (8, 99, 10), (True, False, True))
    a, b = (step(LessonObjective([e]), model, [0]).loss.item() for e in (example, other))
    assert a != b
    result = step(LessonObjective([example]), model, [0])
    with torch.no_grad():
        h = model.encode(torch.tensor([[0, 7, 8, 9]]))
        everywhere = model.logits(model.supervise(h, model.start(h)).y)[0]
    assert torch.allclose(result.logits, everywhere[[1, 3]], atol=1e-6), "of 8 and 10 alone"


def test_memories_have_exactly_the_tokens_that_were_asked_for() -> None:
    for tokens in range(1, 30):
        rows = draw_memories(Memory(EXAMPLES, tokens, 1.0), torch.Generator().manual_seed(tokens))
        assert int(rows.mask_BS.sum()) == tokens


def test_text_stands_beside_with_its_weight() -> None:
    model = make_model()
    plain = step(LessonObjective(EXAMPLES), model, [1])
    beside = step(BesideText(LessonObjective(EXAMPLES), texts, 0.5), model, [1])
    batch = texts(torch.Generator().manual_seed(4))
    with torch.no_grad():
        h = model.encode(batch[:, :-1])
        y = model.supervise(h, model.start(h)).y
        logits, halt = model.logits(y), model.halt(y)
        right = (logits.argmax(-1) == batch[:, 1:]).float()
        text = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        halting = F.binary_cross_entropy_with_logits(halt, right)
    expected = plain.loss.item() + 0.5 * float(text + HALT_WEIGHT * halting)
    assert beside.loss.item() == pytest.approx(expected, rel=1e-5)
    assert step(BesideText(LessonObjective(EXAMPLES), texts, 0.0), model, [1]).loss.item() == plain.loss.item()


def test_text_with_a_teacher_equals_a_naive_loop() -> None:
    """The divergence of every corpus token's distribution from the teacher's, and the halting loss as without one."""
    model, teacher = make_model(), make_model(seed=3)
    plain = step(LessonObjective(EXAMPLES), model, [1])
    beside = step(BesideText(LessonObjective(EXAMPLES), texts, 0.5, teacher), model, [1])
    rows = texts(torch.Generator().manual_seed(4)).tolist()
    assert all(row[0] != 0 for row in rows), "corpus rows begin anywhere, not at an END_OF_TEXT"
    divergences, halting = [], []
    with torch.no_grad():
        for row in rows:
            h = model.encode(torch.tensor([row[:-1]]))
            y = model.supervise(h, model.start(h)).y
            log_p = model.logits(y)[0].double().log_softmax(-1)
            log_t = teacher(torch.tensor([row[:-1]])).logits[0].double().log_softmax(-1)
            divergences += [float((log_t[i].exp() * (log_t[i] - log_p[i])).sum()) for i in range(len(row) - 1)]
            right = (log_p.argmax(-1) == torch.tensor(row[1:])).float()
            halting.append(float(F.binary_cross_entropy_with_logits(model.halt(y)[0], right)))
    expected = plain.loss.item() + 0.5 * (mean(divergences) + HALT_WEIGHT * mean(halting))
    assert beside.loss.item() == pytest.approx(expected, rel=1e-5)
    assert float(beside.metrics["text_loss"]) == pytest.approx(mean(divergences), rel=1e-5)


def test_text_pulls_at_nothing_while_the_model_is_its_teacher() -> None:
    """On the next tokens the same model has a gradient that is noise; against itself it has none."""
    model = make_model()

    def norm(teacher: Cognate | None) -> float:
        model.zero_grad()
        step(BesideText(LessonObjective(EXAMPLES), texts, 1.0, teacher), model, [1]).loss.backward()
        with_text = {name: p.grad for name, p in model.named_parameters() if "halt" not in name and p.grad is not None}
        step(LessonObjective(EXAMPLES), model, [1]).loss.neg().backward()
        return max(float(gradient.abs().max()) for gradient in with_text.values())

    assert norm(copy.deepcopy(model)) < 1e-5
    assert norm(None) > 1e-2


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        LessonObjective([])
    with pytest.raises(ValueError, match="nothing to learn from"):
        LessonObjective(EXAMPLES, Memory([], 5, 1.0))
    with pytest.raises(ValueError, match="one that is learned"):
        Example((1,), (2, 3), (False, False))
