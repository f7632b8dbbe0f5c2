"""The A-cycle on a small ternary model and on one that writes what it is told to: lessons, trajectories, splits."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from forge_resources.sandbox import open_sandbox
from tests.core.scripted_model import ScriptedModel
from tests.core.small_cycles import material, parent
from tests.core.test_character_council import question
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.evaluation.intervals import wilson
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.phases.p6_baking.context import Baked
from training_core.phases.p6_baking.tools import ToolCycle
from training_core.tasks.questions.attempts import completion_text, question_text
from training_core.tasks.questions.bank import QuestionBank
from training_core.tasks.repair.edits import Edit, apply_edit
from training_core.tasks.repair.grading import SandboxRunner, grade
from training_core.tasks.repair.instances import Instance
from training_core.tasks.repair.micro_repositories import gold_edit, gold_text, instance_text, make_instances
from training_core.tasks.sandbox import Limits, ProgramVerdict, Sandbox

PROMPT = "Mend it."
LINES, NAMES = 2, 3
OK, FAIL, DOES_NOT_APPLY = "<out>ok</out>", "<out>fail</out>", "<out>does not apply</out>"
SETTINGS: dict[str, object] = {
    "tool_prompt": PROMPT,
    "repair_lines": LINES,
    "repair_names": NAMES,
    "repairs": 2,
    "shown_repairs": 2,
    "tool_questions": 2,
    "num_trajectories": 4,
    "held_out_trajectories": 3,
}
LONG = SETTINGS | {"repair_tokens": 130}  # room for two repairs and their replies
SUM = replace(question("17+25", "42", 2), solution="It is <<17+25=42>>42.")
CUBE = replace(question("2*2*2", "8", 3), solution="<<2*2*2=8>>8")
SQUARE = replace(question("9*9", "81", 3), solution="<py>print(9*9)</py><out>81</out>")


class Sure(ScriptedModel):
    """Follows its script at temperature 1 too: any other token has a probability of e^-100."""

    def step(self, tokens: Tensor, state: list[list[int]]) -> Tensor:
        return 10 * super().step(tokens, state)


class Contrary:
    """A sandbox that says of everything that passes that it is wrong."""

    name = "contrary"

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def check(self, candidate: str, tests: str, limits: Limits) -> ProgramVerdict:
        verdict = self.sandbox.check(candidate, tests, limits)
        return replace(verdict, status="wrong") if verdict.passed else verdict


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox("embedded") as opened:
        yield opened


@pytest.fixture
def cycle(small_data: dict[str, Path], sandbox: Sandbox) -> ToolCycle:
    return ToolCycle(material(small_data, sandbox, **LONG))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def iterated(small_data: dict[str, Path], sandbox: Sandbox) -> tuple[ToolCycle, Cognate, Baked]:
    """A cycle after an iteration that began with a small model, and its result."""
    cycle = ToolCycle(material(small_data, sandbox, **SETTINGS))  # type: ignore[arg-type]
    cycle.material.context.__dict__["_bank"] = bank_with_tools()
    model = parent()
    return cycle, model, cycle.iterate(0, model, 0.5)


def bank_with_tools() -> QuestionBank:
    """Training questions without a tool, with the calculator and with Python."""
    plain = replace(question("3=4?", "no"), solution="3 = 4>> is not so.")
    train = [question(), SUM, plain, SQUARE, question("7-5"), SUM, CUBE]
    return QuestionBank(train, [question("5-1", "4")], [question("5-2", "3")], spent_usd=0.0, note="")


@cache
def every(split: str) -> dict[str, Instance]:
    """All instances of a split of this hardness, by what a model is given."""
    with pytest.raises(ValueError, match="has [0-9]+ instances") as refused:
        make_instances(split, 10**6, 0, most_lines=LINES, num_names=NAMES)
    found = re.search("has ([0-9]+) instances", str(refused.value))
    assert found
    return {instance_text(i): i for i in make_instances(split, int(found[1]), 0, most_lines=LINES, num_names=NAMES)}


def model_that_writes(cycle: ToolCycle, scripts: Mapping[str, Sequence[str]]) -> Cognate:
    return Sure(cycle.material.context.tokenizer, scripts)  # type: ignore[return-value]


def wrong_edit(instance: Instance) -> Edit:
    """An edit of the right line that resolves nothing."""
    return Edit(gold_edit(instance).line, " return 'nothing'")


def own_tokens(cycle: ToolCycle, *pieces: str) -> tuple[list[int], list[bool]]:
    """Tokens of a completion of which every second piece is a reply, and which of them are the model's."""
    encoded = [cycle.material.context.tokenizer.encode(piece).ids for piece in pieces]
    ids = [token for piece in encoded for token in piece]
    return [*ids, END_OF_TEXT_ID], [*(place % 2 == 0 for place, piece in enumerate(encoded) for _ in piece), True]


# --- lessons


def test_what_was_not_resolved_is_shown_with_the_prompt_and_the_sandboxs_reply(
    iterated: tuple[ToolCycle, Cognate, Baked],
) -> None:
    """A model without any training resolves nothing, so that all of its first lesson is demonstrations."""
    cycle, _, _ = iterated
    tokenizer = cycle.material.context.tokenizer
    repairs = cycle.examples[:-2]
    assert len(repairs) == 2 + 2, "as many as were attempted, and others"
    assert len({example.prompt for example in repairs}) == 4
    for example in repairs:
        assert example.prompt[: len(cycle.prompt_ids)] == cycle.prompt_ids
        shown = tokenizer.decode(list(example.prompt))
        assert shown.startswith(f"{PROMPT}\n")
        instance = every("train")[shown.removeprefix(f"{PROMPT}\n")]
        ids, own = own_tokens(cycle, gold_text(instance), OK)
        assert (list(example.completion), list(example.learned)) == (ids, own)


def test_what_was_resolved_is_learned_as_it_was_written(cycle: ToolCycle) -> None:
    """The first instance is repaired at the second attempt, the second one at none."""
    first, second, *others = cycle.instances("train", 2 + 2, cycle.material.config.training.seed + 1)
    wrong = str(wrong_edit(first))
    scripts = {
        cycle.prompt + instance_text(first): (wrong, gold_text(first)),
        cycle.prompt + instance_text(second): (str(wrong_edit(second)),),
    }
    lesson = cycle._lesson(0, model_that_writes(cycle, scripts))["examples"]
    prompt, completion, learned = lesson[0]
    assert cycle.material.context.tokenizer.decode(prompt) == f"{PROMPT}\n{instance_text(first)}"
    assert (completion, learned) == own_tokens(cycle, wrong, FAIL, gold_text(first), OK)
    shown = [
        (cycle.material.context.tokenizer.decode(prompt), completion, learned)
        for prompt, completion, learned in lesson[1:]
    ]
    assert shown == [
        (f"{PROMPT}\n{instance_text(i)}", *own_tokens(cycle, gold_text(i), OK)) for i in (second, *others)
    ], "that of the second, and those that were not attempted"


def test_a_demonstrations_reply_is_the_sandboxs_whatever_it_is(cycle: ToolCycle, sandbox: Sandbox) -> None:
    cycle.material.context._sandbox = Contrary(sandbox)  # type: ignore[assignment]
    instances = cycle.instances("train", 2 + 2, cycle.material.config.training.seed + 1)
    scripts = {cycle.prompt + instance_text(instances[0]): (gold_text(instances[0]),)}
    lesson = cycle._lesson(0, model_that_writes(cycle, scripts))["examples"]
    for instance, (_, completion, learned) in zip(instances, lesson, strict=True):
        assert (completion, learned) == own_tokens(cycle, gold_text(instance), FAIL)


def test_questions_show_calls_of_tools_whose_outputs_are_not_learned(
    iterated: tuple[ToolCycle, Cognate, Baked],
) -> None:
    cycle, model, _ = iterated
    tokenizer, examples = cycle.material.context.tokenizer, cycle.examples[4:]
    for example, asked, output in zip(examples, (SUM, SQUARE), ("42>>", "<out>81</out>"), strict=True):
        assert tokenizer.decode(list(example.prompt)) == question_text(asked), "a question has no tool prompt"
        assert tokenizer.decode(list(example.completion[:-1])) == completion_text(asked)
        put_in = [token for token, own in zip(example.completion, example.learned, strict=True) if not own]
        assert tokenizer.decode(put_in) == output
    asked = [cycle._lesson(number, model)["examples"][4:] for number in (1, 3)]
    assert [tokenizer.decode(prompt) for prompt, _, _ in asked[0]] == [question_text(SUM), question_text(CUBE)]
    assert asked[1] == [], "all were shown"


def test_later_lessons_are_of_other_instances_and_added(small_data: dict[str, Path], sandbox: Sandbox) -> None:
    cycle, model = ToolCycle(material(small_data, sandbox, **SETTINGS)), parent()  # type: ignore[arg-type]
    first, second = (cycle._lesson(number, model)["examples"] for number in (0, 1))
    assert not {tuple(prompt) for prompt, _, _ in first} & {tuple(prompt) for prompt, _, _ in second}
    cycle.iterate(0, model, 0.5)
    cycle.iterate(1, model, 0.5)
    assert [list(example.prompt) for example in cycle.examples] == [prompt for prompt, _, _ in first + second]


def test_a_lesson_without_unprompted_repairs_is_one(small_data: dict[str, Path], sandbox: Sandbox) -> None:
    cycle = ToolCycle(material(small_data, sandbox, **SETTINGS | {"unprompted_repairs": 0}))  # type: ignore[arg-type]
    assert cycle.iterate(0, parent(), 0.5).trajectories.teaching


# --- trajectories


def test_trajectories_hold_no_prompt_and_are_split(iterated: tuple[ToolCycle, Cognate, Baked]) -> None:
    cycle, _, baked = iterated
    decode = cycle.material.context.tokenizer.decode
    teaching, setting, measuring = (
        [decode(list(t.prefix)) for t in part]
        for part in (baked.trajectories.teaching, baked.trajectories.setting, baked.trajectories.measuring)
    )
    assert (len(teaching), len(setting), len(measuring)) == (4, 3, 3)
    assert set(teaching) <= every("train").keys(), "nothing but the instance stands in front"
    assert set(setting + measuring) <= every("validation").keys()
    assert not every("train").keys() & every("validation").keys()
    names = [every("validation")[text].name for text in setting + measuring]
    assert len(set(names)) == 6, "what sets the strength does not measure it"
    assert all(t.history == () for t in baked.trajectories.teaching)


def test_what_is_baked_is_the_tool_prompt_from_a_model_that_learned(
    iterated: tuple[ToolCycle, Cognate, Baked],
) -> None:
    cycle, model, baked = iterated
    assert (baked.cycle, baked.text, baked.target) == ("tools", f"{PROMPT}\n", 0.5)
    assert baked.prompt_ids == tuple(cycle.material.context.tokenizer.encode(f"{PROMPT}\n").ids)
    before, start = model.state_dict(), baked.start.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in before.items()), "the lesson was learned"
    untouched = parent().state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in before.items()), "by a copy"
    tokens = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        difference = baked.teacher(tokens).logits - baked.start.eval()(tokens).logits
    assert float(difference.abs().max()) < 1e-4, "the teacher is the model that learned"


def test_replies_in_trajectories_are_the_tools_and_nothing_else_is(cycle: ToolCycle) -> None:
    """Right and wrong repairs, one that does not apply, and one that is no repair, all drawn at temperature 1."""
    config = cycle.material.config
    instances = [
        *cycle.instances("train", config.strength.num_trajectories, config.training.seed + 1001),
        *cycle.instances("validation", 2 * config.strength.held_out_trajectories, config.training.seed + 2001),
    ]
    written = {
        0: ((gold_text(instances[0]),), (gold_text(instances[0]), OK)),
        1: ((str(wrong_edit(instances[1])),), (str(wrong_edit(instances[1])), FAIL)),
        2: (("<fix>9 x</fix>",), ("<fix>9 x</fix>", DOES_NOT_APPLY)),
        3: ((OK,), (OK,)),
    }
    scripts = {cycle.prompt + instance_text(instances[place]): script for place, (script, _) in written.items()}
    drawn = cycle._trajectories(0, model_that_writes(cycle, scripts))
    assert len(drawn.teaching) == 4
    for place, trajectory in enumerate(drawn.teaching):
        ids, own = own_tokens(cycle, *written[place][1])
        assert (list(trajectory.continuation), list(trajectory.own)) == (ids, own)
        assert trajectory.prefix == tuple(cycle.material.context.tokenizer.encode(instance_text(instances[place])).ids)
    for trajectory in (*drawn.setting, *drawn.measuring):
        assert (trajectory.continuation, trajectory.own) == ((END_OF_TEXT_ID,), (True,)), "nothing was to be written"


# --- scores and splits


def test_the_score_is_the_share_of_validation_instances_that_are_resolved(
    small_data: dict[str, Path], sandbox: Sandbox
) -> None:
    """Counted by hand over the edits that were written, without the prompt in front."""
    cycle = ToolCycle(material(small_data, sandbox, **LONG, scored_repairs=7))  # type: ignore[arg-type]
    assert len(cycle.validation) == 7
    edits = [gold_edit, wrong_edit, gold_edit, wrong_edit, wrong_edit, gold_edit]
    scripts = {
        instance_text(instance): (str(edit(instance)),) for instance, edit in zip(cycle.validation, edits, strict=False)
    }
    resolved = sum(
        grade(instance, {instance.path: apply_edit(instance.source, edit(instance))}, SandboxRunner(sandbox)).resolved
        for instance, edit in zip(cycle.validation, edits, strict=False)
    )
    assert resolved == 3
    assert cycle.score(model_that_writes(cycle, scripts)) == wilson(3, 7)
    prompted = {cycle.prompt + text: script for text, script in scripts.items()}
    assert cycle.score(model_that_writes(cycle, prompted)) == wilson(0, 7)
    attempts = cycle.repair(model_that_writes(cycle, prompted), cycle.validation, prompted=True)
    assert [attempt.resolved for attempt in attempts] == [True, False, True, False, False, True, False]


def test_attempts_are_greedy_unless_they_are_drawn(small_data: dict[str, Path], sandbox: Sandbox) -> None:
    cycle, model = ToolCycle(material(small_data, sandbox, **SETTINGS)), parent()  # type: ignore[arg-type]
    greedy, drawn = (
        [attempt.completion_ids for attempt in cycle.repair(model, cycle.validation, temperature=temperature)]
        for temperature in (0.0, 1.0)
    )
    for instance, completion in zip(cycle.validation, greedy, strict=True):
        ids = [END_OF_TEXT_ID, *cycle.material.context.tokenizer.encode(instance_text(instance)).ids, *completion]
        with torch.no_grad():
            likeliest = inference_copy(model)(torch.tensor([ids[:-1]])).logits[0].argmax(-1)
        assert completion == tuple(likeliest[-len(completion) :].tolist())
        assert len(completion) == cycle.material.config.lessons.repair_tokens
    assert greedy != drawn


def test_what_other_bakes_leave_alone_are_training_repairs_without_the_prompt(cycle: ToolCycle) -> None:
    texts = cycle.taught()
    assert len(set(texts)) == len(texts) >= 100
    for text in texts:
        given = text[: text.index("Fix:") + len("Fix:")]
        assert text == given + gold_text(every("train")[given])
        assert PROMPT not in text


def test_instances_are_as_hard_as_configured(small_data: dict[str, Path], sandbox: Sandbox) -> None:
    def hardness(**changes: object) -> tuple[int, set[str]]:
        cycle = ToolCycle(material(small_data, sandbox, **(SETTINGS | changes)))  # type: ignore[arg-type]
        made = [i for split in ("train", "validation", "test") for i in cycle.instances(split, 40, 3)]
        functions = [node for i in made for node in ast.walk(ast.parse(i.source)) if isinstance(node, ast.FunctionDef)]
        assert [*cycle.validation] == make_instances(
            "validation", 3, cycle.material.config.training.seed, most_lines=cycle.material.config.lessons.repair_lines,
            num_names=cycle.material.config.lessons.repair_names,
        )  # fmt: skip
        return max(i.source.count("\n") for i in made), {arg.arg for f in functions for arg in f.args.args}

    assert hardness() == (2, set("abc"))
    assert hardness(repair_lines=6)[0] > 2
    assert hardness(repair_names=16)[1] > set("abcdk")


def test_a_tool_prompt_that_leaves_no_room_is_refused_with_its_numbers(
    small_data: dict[str, Path], sandbox: Sandbox
) -> None:
    longest = 320
    made = ToolCycle(material(small_data, sandbox, **SETTINGS))  # type: ignore[arg-type]
    most = max(len(made.material.context.tokenizer.encode(instance_text(i)).ids) for i in made.validation)
    room = longest - len(made.prompt_ids) - most
    ToolCycle(material(small_data, sandbox, **(SETTINGS | {"repair_tokens": room})))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"{most} of a micro-repository and {room + 1} .* exceed max_seq_len = 320"):
        ToolCycle(material(small_data, sandbox, **(SETTINGS | {"repair_tokens": room + 1})))  # type: ignore[arg-type]
