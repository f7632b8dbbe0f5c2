"""Attempts at repairs by models that write what they are told to, and by one that learned from demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

import pytest
import torch
from tokenizers import Tokenizer

from forge_resources.sandbox import open_sandbox
from tests.core.scripted_model import ScriptedModel
from tests.core.small_data import SHAPE, sentences
from training_core.data.tokenizer import END_OF_TEXT_ID, TokenizerConfig, train_tokenizer
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig
from training_core.tasks.questions.sft_objective import Example, LessonObjective
from training_core.tasks.repair.attempts import MOST_FIXES, RepairAttempt, attempt_repairs, demonstration
from training_core.tasks.repair.excerpts import attempt_excerpt, excerpt, first_change
from training_core.tasks.repair.instances import Instance
from training_core.tasks.repair.micro_repositories import gold_text, instance_text, make_instances
from training_core.tasks.sandbox import Limits, Outcome, Program, ProgramVerdict, Sandbox, SandboxUnavailableError

SUM = Instance(
    name="sum by hand",
    files={"m.py": "def f(a, b):\n return a - b\n"},
    issue="the sum",
    visible_test="assert f(2, 3) == 5",
    fail_to_pass={"wrong_1": "assert f(1, 6) == 7", "wrong_2": "assert f(4, 4) == 8"},
    pass_to_pass={"right_1": "assert f(3, 0) == 3"},
    gold_files={"m.py": "def f(a, b):\n return a + b\n"},
    kind="operator",
)
GOLD = "<fix>2 return a + b</fix>"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox("embedded") as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [instance_text(i) + gold_text(i) for i in make_instances("train", 100, 0)]
    return train_tokenizer(TokenizerConfig(vocab_size=320), [*texts, *sentences(50)])


def attempt(tokenizer: Tokenizer, sandbox: Sandbox, *script: str, max_tokens: int = 200) -> RepairAttempt:
    model = ScriptedModel(tokenizer, {instance_text(SUM): script})
    (made,) = attempt_repairs(model, tokenizer, [SUM], sandbox, torch.Generator(), max_tokens=max_tokens)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("script", "replies", "status"),
    [
        ((GOLD,), ["ok"], "resolved"),
        (("<fix>2 return b + a</fix>",), ["ok"], "resolved"),
        (("<fix>2 return a * b</fix>",), ["fail"], "unresolved"),
        (("<fix>2 return 5</fix>",), ["ok"], "unresolved"),  # the visible test is no hidden one
        (("<fix>2 return a +</fix>",), ["fail"], "unresolved"),
        (("<fix>3 return a + b</fix>",), ["does not apply"], "does_not_apply"),
        (("<fix>2 return a - b</fix>",), ["does not apply"], "does_not_apply"),
        (("<fix>return a + b</fix>",), ["does not apply"], "does_not_apply"),
        (("<fix></fix>",), ["does not apply"], "does_not_apply"),
        (("<fix>2 import heapq</fix>",), ["unsupported"], "unresolved"),
        (("<fix>2 return a * b</fix>", GOLD), ["fail", "ok"], "resolved"),
        (("<fix>2 return a * b</fix>", "\n" + GOLD), ["fail", "ok"], "resolved"),
        ((GOLD, "<fix>2 return a * b</fix>"), ["ok", "fail"], "unresolved"),  # the last counts
        ((GOLD, "<fix>9 x</fix>"), ["ok", "does not apply"], "does_not_apply"),
        ((), [], "empty"),
        (("I do not know.",), [], "empty"),
        (("<out>ok</out>",), [], "empty"),
        (("<fix>2 return a + b<out>ok</out>",), [], "empty"),
        (("<fix>2 return a + b</fix <out>ok</out>",), [], "empty"),
        (("<out>ok</out><fix>2 return a * b</fix>",), ["fail"], "unresolved"),
    ],
)
def test_what_is_written_is_applied_answered_and_graded(
    tokenizer: Tokenizer, sandbox: Sandbox, script: tuple[str, ...], replies: list[str], status: str
) -> None:
    made = attempt(tokenizer, sandbox, *script)
    assert [call.output for call in made.calls] == replies
    assert made.grade.status == status
    assert made.resolved == (status == "resolved")
    expected, written = "", list(script)
    for reply in replies:
        expected += written.pop(0) + f"<out>{reply}</out>"
    assert made.text == expected + "".join(written)
    assert made.prompt_ids == tuple(tokenizer.encode(instance_text(SUM)).ids)
    assert made.completion_ids[-1] == END_OF_TEXT_ID
    put_in = [token for token, own in zip(made.completion_ids, made.own, strict=True) if not own]
    assert tokenizer.decode(put_in) == "".join(f"<out>{reply}</out>" for reply in replies)


def test_a_third_fix_is_neither_answered_nor_counted(tokenizer: Tokenizer, sandbox: Sandbox) -> None:
    wrong = "<fix>2 return a * b</fix>"
    made = attempt(tokenizer, sandbox, wrong, wrong, GOLD)
    assert len(made.calls) == MOST_FIXES == 2
    assert made.grade.status == "unresolved"
    assert made.text.endswith(GOLD)
    assert all(made.own[-5:])


def test_a_tool_that_hangs_is_a_reply(tokenizer: Tokenizer, sandbox: Sandbox) -> None:
    made = attempt(tokenizer, sandbox, "<fix>2 while True: a = b</fix>", "<fix>2 return 'a' * 10 ** 9</fix>")
    assert [call.output for call in made.calls] == ["timeout", "memory"]
    assert dict(made.grade.still_failing) == {"wrong_1": "memory", "wrong_2": "memory"}
    hung = attempt(tokenizer, sandbox, "<fix>2 while True: a = b</fix>")
    assert dict(hung.grade.still_failing) == {"wrong_1": "timeout", "wrong_2": "not run"}
    assert dict(hung.grade.broken) == {"right_1": "not run"}


def test_a_fix_that_is_cut_off_was_not_made(tokenizer: Tokenizer, sandbox: Sandbox) -> None:
    length = len(tokenizer.encode(GOLD).ids)
    cut = attempt(tokenizer, sandbox, GOLD, max_tokens=length - 1)
    assert (cut.calls, cut.grade.status, len(cut.completion_ids)) == ((), "empty", length - 1)
    reply_cut = attempt(tokenizer, sandbox, GOLD, max_tokens=length + 2)
    assert (reply_cut.grade.status, len(reply_cut.completion_ids)) == ("resolved", length + 2)


class LostSandbox:
    """Isolation that fails at once."""

    name = "lost"

    def run(self, program: Program, limits: Limits) -> Outcome:
        raise SandboxUnavailableError("the engine is gone")

    def check(self, candidate: str, tests: str, limits: Limits) -> ProgramVerdict:
        raise SandboxUnavailableError("the engine is gone")

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def test_a_lost_sandbox_ends_the_attempt(tokenizer: Tokenizer) -> None:
    for script in ((GOLD,), ()):
        with pytest.raises(SandboxUnavailableError, match="engine is gone"):
            attempt(tokenizer, LostSandbox(), *script)
    with pytest.raises(SandboxUnavailableError, match="engine is gone"):
        demonstration(tokenizer, SUM, LostSandbox())


def test_a_prompt_longer_than_the_context_is_refused(tokenizer: Tokenizer, sandbox: Sandbox) -> None:
    prompt = len(tokenizer.encode("Be quick. " + instance_text(SUM)).ids)
    for longest, fits in ((prompt + 30, True), (prompt + 29, False)):
        model = ScriptedModel(tokenizer, {"Be quick. " + instance_text(SUM): [GOLD]}, longest)
        arguments = (model, tokenizer, [SUM], sandbox, torch.Generator())
        if fits:
            (made,) = attempt_repairs(*arguments, preamble="Be quick. ", max_tokens=30)  # type: ignore[arg-type]
            assert len(made.prompt_ids) == prompt
        else:
            with pytest.raises(ValueError, match=f"{prompt} tokens of preamble.* 30 of .* max_seq_len = {prompt + 29}"):
                attempt_repairs(*arguments, preamble="Be quick. ", max_tokens=30)  # type: ignore[arg-type]


def test_attempts_come_back_in_order_with_their_own_replies(tokenizer: Tokenizer, sandbox: Sandbox) -> None:
    instances = make_instances("train", 12, 0)
    scripts = {instance_text(i): [gold_text(i)] if n % 3 else ["<fix>9 x</fix>"] for n, i in enumerate(instances)}
    made = attempt_repairs(
        ScriptedModel(tokenizer, scripts), tokenizer, instances, sandbox, torch.Generator(), max_tokens=120  # type: ignore[arg-type]
    )  # fmt: skip
    assert [each.instance for each in made] == instances
    assert [each.resolved for each in made] == [bool(n % 3) for n in range(12)]
    assert [each.calls[0].output for each in made] == ["ok" if n % 3 else "does not apply" for n in range(12)]


def test_a_demonstration_is_the_true_repair_with_the_real_reply(tokenizer: Tokenizer, sandbox: Sandbox) -> None:
    prompt, completion, own = demonstration(tokenizer, SUM, sandbox, preamble="Fix it. ")
    assert tokenizer.decode(list(prompt)) == "Fix it. Issue: the sum\n1 def f(a, b):\n2  return a - b\nFix:"
    assert tokenizer.decode(list(completion[:-1])) == f"{GOLD}<out>ok</out>"
    assert completion[-1] == END_OF_TEXT_ID
    assert own[-1]
    put_in = [token for token, mine in zip(completion, own, strict=True) if not mine]
    assert tokenizer.decode(put_in) == "<out>ok</out>"
    other = replace(SUM, visible_test="assert f(2, 3) == 6")
    assert "<out>fail</out>" in tokenizer.decode(list(demonstration(tokenizer, other, sandbox)[1][:-1]))


@pytest.mark.slow
def test_a_model_learns_from_demonstrations_what_it_then_does_alone(tokenizer: Tokenizer, sandbox: Sandbox) -> None:
    torch.manual_seed(0)
    shape = SHAPE | {"max_seq_len": 160, "window": 96}
    model = Cognate(CognateConfig(vocab_size=tokenizer.get_vocab_size(), **shape))  # type: ignore[arg-type]
    instances = [i for i in make_instances("train", 60, 0) if len(i.source) < 32][:3]
    before = attempt_repairs(model, tokenizer, instances, sandbox, torch.Generator(), max_tokens=40)
    assert {each.grade.status for each in before} == {"empty"}
    objective = LessonObjective([Example(*demonstration(tokenizer, each, sandbox)) for each in instances])
    optimizer = MuGrokfast(model, OptimizerConfig(muon_lr=0.02, adamw_lr=0.01))
    for _ in range(60):
        objective(model, torch.arange(3), None, torch.Generator()).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
    after = attempt_repairs(model.eval(), tokenizer, instances, sandbox, torch.Generator(), max_tokens=40)
    assert [each.text for each in after] == [f"{gold_text(each)}<out>ok</out>" for each in instances]
    assert all(each.resolved and each.completion_ids[-1] == END_OF_TEXT_ID for each in after)


def large_instance() -> Instance:
    """Sixty lines, of which the 40th is wrong, beside another file that is right."""
    lines = [f"value_{number} = {number}" for number in range(1, 61)]
    right = "\n".join(lines) + "\n"
    wrong = right.replace("value_40 = 40", "value_40 = 41")
    return Instance(
        "large", {"a.py": "x = 1\n", "b.py": wrong}, "value_40 is 40", "", {"t": ""}, {"s": ""},
        {"a.py": "x = 1\n", "b.py": right}, "release",
    )  # fmt: skip


def test_an_excerpt_is_around_the_change_and_fits(tokenizer: Tokenizer) -> None:
    instance = large_instance()
    assert first_change(instance) == ("b.py", 40)
    more = replace(instance, gold_files={**instance.gold_files, "a.py": "x = 1\ny = 2\nz = 3\nw = 4\n"})
    assert first_change(more) == ("a.py", 2)  # the file that changes most
    added = replace(instance, gold_files={**instance.files, "c.py": "new\n"})
    with pytest.raises(ValueError, match="changes no file of the older release"):
        first_change(added)
    for room in (60, 150, 400):
        text = excerpt(tokenizer, instance, "b.py", 40, room)
        size = len(tokenizer.encode(text).ids)
        assert size <= room
        assert "\n40 value_40 = 41\n" in text
        assert text.startswith("Issue: value_40 is 40\n") or room == 60
        numbers = [int(line.split()[0]) for line in text.split("\n")[1:-1]]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert abs((40 - numbers[0]) - (numbers[-1] - 40)) <= 1 or 61 in numbers
    assert size > 350
    wordy = excerpt(tokenizer, replace(instance, issue="value " * 500), "b.py", 40, 400)
    issue = wordy.split("\n")[0].removeprefix("Issue: ")
    assert 90 <= len(tokenizer.encode(issue).ids) <= 100  # a quarter of the room
    assert len(tokenizer.encode(wordy).ids) <= 400
    with pytest.raises(ValueError, match="line 40 of b.py does not fit in 20 tokens"):
        excerpt(tokenizer, instance, "b.py", 40, 20)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("<fix>40 value_40 = 40</fix>", "gold"),
        ("x <fix>40 value_40 = 40</fix> y", "gold"),
        ("nothing", "empty"),
        ("<fix>99 x</fix>", None),
    ],
)
def test_an_attempt_at_an_excerpt(tokenizer: Tokenizer, script: str, expected: str | None) -> None:
    instance = large_instance()
    prompt = excerpt(tokenizer, instance, "b.py", 40, 200 - 48)
    model = ScriptedModel(tokenizer, {prompt: [script]}, 200)
    made = attempt_excerpt(model, tokenizer, instance, torch.Generator())  # type: ignore[arg-type]
    assert (made.prompt, made.text) == (prompt, script)
    assert made.files == {"gold": instance.gold_files, "empty": instance.files, None: None}[expected]
    assert bool(made.why) == (expected is None)
