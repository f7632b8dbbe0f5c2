"""The B-cycle on small models: what is proposed, what wins, what a persona is shown and learned on."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from forge_resources.sandbox import open_sandbox
from tests.core.scripted_model import ScriptedModel
from tests.core.small_cycles import material, parent
from tests.core.test_character_council import question
from tests.core.test_character_phase import bank
from training_core.data.batches import TEXT_ONLY, TrainingData
from training_core.data.documents import read_jsonl
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.distill.trajectories import Trajectory
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig
from training_core.phases.p6_baking import context as limits
from training_core.phases.p6_baking import personas
from training_core.phases.p6_baking.context import CycleContext, NothingToBakeError, Trajectories
from training_core.phases.p6_baking.personas import HISTORY_TURNS, LEAST_WORDS, REPLY_CUE, PersonaCycle
from training_core.phases.p6_baking.tools import ToolCycle
from training_core.tasks.questions.bank import QuestionBank
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.likelihood import example_of, measure_likelihoods
from training_core.tasks.questions.question import Question
from training_core.tasks.sandbox import Sandbox
from training_core.training.objective import next_token_objective

LINE = 20  # tokens of a line: long enough to tell which text it is from
SAID, REPLY, CONTINUATION = 300, 2, 4
SETTINGS: dict[str, object] = {
    "proposals": 4,
    "proposal_tokens": 8,
    "line_tokens": LINE,
    "reply_tokens": REPLY,
    "persona_tokens": CONTINUATION,
    "num_trajectories": 12,
    "held_out_trajectories": 6,
    "turns": 3,
}


class Talker(ScriptedModel):
    """Follows its script behind END_OF_TEXT, and finds every token behind anything equally likely."""

    def forward(self, tokens: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*tokens.shape, self.tokenizer.get_vocab_size()))

    def step(self, tokens: Tensor, state: list[list[int]]) -> Tensor:
        return 10 * super().step(tokens, state)


class Parrot(ScriptedModel):
    """Says one token, whatever it is given, and keeps what it was fed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, {})
        self.config.vocab_size = tokenizer.get_vocab_size()
        self.fed: list[list[int]] = []

    def stream(self, rows: int) -> list[list[int]]:
        state = super().stream(rows)
        self.fed += state
        return state

    def _next(self, fed: tuple[int, ...]) -> int:
        return SAID

    def step(self, tokens: Tensor, state: list[list[int]]) -> Tensor:
        return 10 * super().step(tokens, state)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox("embedded") as opened:
        yield opened


def make_cycle(folders: dict[str, Path], sandbox: Sandbox, **changes: object) -> PersonaCycle:
    made = material(folders, sandbox, **(SETTINGS | changes))  # type: ignore[arg-type]
    return PersonaCycle(made, ToolCycle(made))


def fixed(cycle: PersonaCycle) -> PersonaCycle:
    """As if its product were final, so that test text may be read."""
    cycle.material.context.fix()
    return cycle


@pytest.fixture(scope="module")
def made(small_data: dict[str, Path], sandbox: Sandbox) -> CycleContext:
    return material(small_data, sandbox, **SETTINGS)  # type: ignore[arg-type]


@pytest.fixture
def cycle(made: CycleContext) -> PersonaCycle:
    """A cycle that has not begun; nothing is kept of what others did."""
    return PersonaCycle(made, ToolCycle(made))


def writer(folders: dict[str, Path], seed: int) -> Cognate:
    """A model that has seen a little text, so that what it writes has words."""
    model, data = parent().train(), TrainingData.open(folders["tokens"], folders["task_bank"])
    optimizer = MuGrokfast(model, OptimizerConfig(muon_lr=0.02, adamw_lr=0.02))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(15):
        batch = data.batch(TEXT_ONLY, 4, 33, generator)
        next_token_objective(model, batch, None, generator).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
    return model.eval()


@pytest.fixture(scope="module")
def model(small_data: dict[str, Path]) -> Cognate:
    return writer(small_data, 0)


def proposed(cycle: PersonaCycle, model: Cognate, number: int = 0) -> list[str]:
    return [proposal["text"] for proposal in cycle._propose(number, inference_copy(model))["proposals"]]


def talker(cycle: PersonaCycle, says: str) -> Cognate:
    return Talker(cycle.material.context.tokenizer, {"": (says,)})  # type: ignore[return-value]


# --- proposals


def test_proposals_come_from_the_model_and_the_seed(
    cycle: PersonaCycle, model: Cognate, small_data: dict[str, Path], sandbox: Sandbox
) -> None:
    first = proposed(cycle, model)
    assert len(first) == len(set(first)) == 4
    assert proposed(make_cycle(small_data, sandbox), model) == first
    for others in (
        proposed(cycle, writer(small_data, 3)),
        proposed(cycle, model, number=3),
        proposed(make_cycle(small_data, sandbox, seed=18), model),
    ):
        assert len(others) == 4
        assert not set(first) & set(others)
    source = "".join(path.read_text() for path in Path(personas.__file__).parents[1].rglob("*.py"))
    for text in first:
        assert len(text.split()) >= LEAST_WORDS == 2
        assert text.endswith("\n")
        assert text.count("\n") == 1, "one line, so that the next begins a question"
        assert len(cycle.material.context.tokenizer.encode(text).ids) <= 8 + 1
        assert text.strip() not in source


def test_what_the_model_says_is_what_is_proposed_and_nothing_else(cycle: PersonaCycle) -> None:
    assert proposed(cycle, talker(cycle, "Be\n kind")) == ["Be kind\n"], "the same four times in four draws is one"
    assert proposed(cycle, talker(cycle, "Kind")) == [], "one word says nothing"
    assert proposed(cycle, talker(cycle, "")) == []


def test_a_model_that_says_nothing_has_nothing_to_bake(cycle: PersonaCycle) -> None:
    with pytest.raises(NothingToBakeError, match="proposed no prompt that says anything"):
        cycle.iterate(0, talker(cycle, "Kind"), 0.5)
    assert cycle.winners == []


def test_earlier_winners_compete_again(cycle: PersonaCycle, model: Cognate) -> None:
    cycle.winners = ["Be kind\n", "Be brief\n", "Be kind\n"]
    assert proposed(cycle, talker(cycle, "Be brave")) == ["Be kind\n", "Be brief\n", "Be brave\n"]
    assert proposed(cycle, model)[:2] == ["Be kind\n", "Be brief\n"]


def test_scores_are_measured_with_the_text_in_front_and_the_highest_wins(cycle: PersonaCycle, model: Cognate) -> None:
    """Of one iteration and of the next, where the winner competes again."""
    chosen = []
    for number in range(3):
        proposals = cycle._propose(number, inference_copy(model))["proposals"]
        for proposal in proposals:
            told = measure_likelihoods(model, cycle.material.context.tokenizer, cycle.validation, proposal["text"])
            assert proposal["score"] == told.mean_probability().document()
        values = [proposal["score"]["value"] for proposal in proposals]
        assert len(set(values)) == len(values)
        assert [p["chosen"] for p in proposals] == [value == max(values) for value in values]
        chosen.append(max(values))
        cycle.winners += [proposal["text"] for proposal in proposals if proposal["chosen"]]
    assert chosen == sorted(chosen), "the best so far is never lost"


def test_the_score_of_a_model_is_that_without_a_prompt(cycle: PersonaCycle) -> None:
    assert len(cycle.validation) == cycle.material.config.persona.scored_questions
    assert set(cycle.validation) <= set(cycle.material.context.selection.questions)
    assert {q.level for q in cycle.validation} <= set(cycle.material.levels_in_reach)
    told = measure_likelihoods(parent(), cycle.material.context.tokenizer, cycle.validation)
    assert cycle.score(parent()) == told.mean_probability()
    assert cycle.score(parent(), "Be kind\n") != told.mean_probability()


# --- trajectories


def heard(cycle: PersonaCycle, prompt: str) -> tuple[Parrot, tuple[int, ...], Trajectories]:
    """Trajectories of a model that says one token, prompted."""
    model = Parrot(cycle.material.context.tokenizer)
    prompt_ids = tuple(cycle.material.context.tokenizer.encode(prompt).ids)
    return model, prompt_ids, cycle._trajectories(0, model, prompt_ids)  # type: ignore[arg-type]


def parsed(cycle: PersonaCycle, ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The texts of a user's lines in turns of a conversation, each behind a line break and before the cue and reply."""
    encode = cycle.material.context.tokenizer.encode
    before, behind = encode("\n").ids, encode(REPLY_CUE).ids
    turn = len(before) + LINE + len(behind) + REPLY
    lines = []
    assert len(ids) % turn == 0
    for start in range(0, len(ids), turn):
        said = list(ids[start : start + turn])
        assert said[: len(before)] == before
        assert said[len(before) + LINE :] == [*behind, *[SAID] * REPLY]
        lines.append(tuple(said[len(before) : len(before) + LINE]))
    return lines


def text_of(folders: dict[str, Path], split: str) -> str:
    return "".join(read_jsonl(folders["corpus"] / f"{split}.jsonl"))


def contains(pieces: set[tuple[int, ...]], cycle: PersonaCycle, text: str) -> list[bool]:
    return [cycle.material.context.tokenizer.decode(list(piece)) in text for piece in pieces]


def test_conversations_of_no_two_and_four_earlier_turns_follow_each_other(cycle: PersonaCycle) -> None:
    _, _, drawn = heard(cycle, "Be kind\n")
    assert (len(drawn.teaching), len(drawn.setting), len(drawn.measuring)) == (12, 6, 6)
    assert HISTORY_TURNS == (0, 2, 4)
    for place, trajectory in enumerate((*drawn.teaching, *drawn.setting, *drawn.measuring)):
        assert trajectory.continuation == (SAID,) * CONTINUATION
        assert len(parsed(cycle, trajectory.history)) == HISTORY_TURNS[place % 3]
        assert len(parsed(cycle, (*trajectory.prefix, SAID, SAID))) == 1


def test_the_prompt_is_heard_behind_the_history_and_kept_nowhere(cycle: PersonaCycle) -> None:
    """What the model was fed: the replies of histories first, each to its line alone, then the continuations."""
    model, prompt_ids, drawn = heard(cycle, "Be kind\n")
    trajectories = (*drawn.teaching, *drawn.setting, *drawn.measuring)
    rows, single = model.fed[-len(trajectories) :], model.fed[: -len(trajectories)]
    for row, t in zip(rows, trajectories, strict=True):
        given = [END_OF_TEXT_ID, *t.history, *prompt_ids, *t.prefix]
        assert row[: len(given)] == given
        for start in range(len(t.history) + 1):
            assert t.history[start : start + len(prompt_ids)] != prompt_ids
        assert prompt_ids not in [t.prefix[start : start + len(prompt_ids)] for start in range(len(t.prefix))]
    heads = {tuple(row[1 : 1 + len(prompt_ids)]) for row in single}
    assert heads == {prompt_ids}, "replies in a history are prompted ones, too"


def test_lines_are_of_training_text_to_learn_from_and_of_validation_text_to_measure(
    cycle: PersonaCycle, small_data: dict[str, Path]
) -> None:
    _, _, drawn = heard(cycle, "Be kind\n")
    train, validation = text_of(small_data, "train"), text_of(small_data, "validation")

    def lines(*trajectories: Trajectory) -> set[tuple[int, ...]]:
        rows = [(*t.history, *t.prefix, SAID, SAID) for t in trajectories]
        return {line for row in rows for line in parsed(cycle, row)}

    teaching, held_out = lines(*drawn.teaching), lines(*drawn.setting, *drawn.measuring)
    assert len(teaching) >= 12
    assert len(held_out) >= 12
    assert all(contains(teaching, cycle, train))
    assert not all(contains(teaching, cycle, validation))
    assert all(contains(held_out, cycle, validation))
    assert not all(contains(held_out, cycle, train))
    setting, measuring = ({(t.history, t.prefix) for t in part} for part in (drawn.setting, drawn.measuring))
    assert not setting & measuring, "what sets the strength does not measure it"


def test_trajectories_are_those_of_the_seed_and_of_the_prompted_model(
    small_data: dict[str, Path], sandbox: Sandbox, model: Cognate
) -> None:
    few = {"line_tokens": 2, "num_trajectories": 4, "held_out_trajectories": 2}
    cycle, model = make_cycle(small_data, sandbox, **few), inference_copy(model)
    ids, others = (
        tuple(cycle.material.context.tokenizer.encode(text).ids) for text in ("The old empire\n", "1 1 1 1 1 1\n")
    )
    first = cycle._trajectories(0, model, ids)
    assert make_cycle(small_data, sandbox, **few)._trajectories(0, model, ids) == first
    assert cycle._trajectories(1, model, ids) != first
    assert cycle._trajectories(0, model, others) != first


# --- conversations and texts


def test_conversations_have_a_line_of_test_text_each_turn(small_data: dict[str, Path], sandbox: Sandbox) -> None:
    cycle = fixed(make_cycle(small_data, sandbox))
    made = cycle.conversations(5, 3, torch.Generator().manual_seed(0))
    assert [len(conversation) for conversation in made] == [3] * 5
    lines = [parsed(cycle, (*line, SAID, SAID))[0] for conversation in made for line in conversation]
    assert len(set(lines)) == 15
    assert all(contains(set(lines), cycle, text_of(small_data, "test")))
    assert not all(contains(set(lines), cycle, text_of(small_data, "train")))
    again = cycle.conversations(5, 3, torch.Generator().manual_seed(0))
    assert made == again != cycle.conversations(5, 3, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_texts_are_of_their_split(small_data: dict[str, Path], sandbox: Sandbox, split: str) -> None:
    cycle = fixed(make_cycle(small_data, sandbox))
    texts = cycle.text(30, split, 40, torch.Generator().manual_seed(0))
    assert [len(ids) for ids in texts] == [40] * 30
    pieces = {tuple(ids) for ids in texts}
    assert len(pieces) > 20
    for each in ("train", "validation", "test"):
        assert all(contains(pieces, cycle, text_of(small_data, each))) == (each == split)


# --- an iteration, and refusals


def test_an_iteration_bakes_the_winner(cycle: PersonaCycle, model: Cognate) -> None:
    untouched = copy.deepcopy(model.state_dict())
    baked = cycle.iterate(0, model, 0.5)
    assert [proposal.iteration for proposal in cycle.proposals] == [0] * 4
    (chosen,) = (proposal.text for proposal in cycle.proposals if proposal.chosen)
    assert (baked.cycle, baked.text, baked.target) == ("persona", chosen, 0.5)
    assert cycle.winners == [chosen]
    assert baked.prompt_ids == tuple(cycle.material.context.tokenizer.encode(chosen).ids)
    assert baked.start is model
    assert all(torch.equal(value, untouched[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, untouched[name]) for name, value in baked.full.state_dict().items())
    assert baked.trajectories == cycle._trajectories(0, inference_copy(model), baked.prompt_ids)


def test_a_prompt_without_an_effect_is_not_baked(
    cycle: PersonaCycle, model: Cognate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit that no prompt reaches."""
    monkeypatch.setattr(limits, "NO_EFFECT_NATS", 1e3)
    with pytest.raises(NothingToBakeError, match=r"differs by [0-9.e-]+ nats per token") as refused:
        cycle.iterate(0, model, 0.5)
    told = re.search(r"by (\S+) nats", str(refused.value))
    assert told
    assert 0 < float(told[1]) < 10
    assert cycle.winners == [], "what has no effect does not compete again"
    assert len(cycle.proposals) == 4


def test_turns_that_do_not_fit_are_refused_with_their_numbers(small_data: dict[str, Path], sandbox: Sandbox) -> None:
    """320 positions: a prompt of 9, and turns of a line, of its break and cue, and of a reply."""
    encode = make_cycle(small_data, sandbox).material.context.tokenizer.encode
    turn = 2 + len(encode("\n" + REPLY_CUE).ids) + REPLY
    most, over = divmod(320 - 9, turn)
    make_cycle(small_data, sandbox, line_tokens=2, turns=most)
    with pytest.raises(
        ValueError,
        match=rf"up to 9 tokens and {(most + 1) * turn} of {most + 1} turns of line_tokens .* exceed max_seq_len = 320",
    ):
        make_cycle(small_data, sandbox, line_tokens=2, turns=most + 1)
    fits = 9 + over
    assert fits - 1 + most * turn == 320 - 1
    make_cycle(small_data, sandbox, line_tokens=2, turns=most, proposal_tokens=fits - 1)
    with pytest.raises(ValueError, match=rf"a prompt of up to {fits + 1} tokens and {most * turn} of .* exceed"):
        make_cycle(small_data, sandbox, line_tokens=2, turns=most, proposal_tokens=fits)


def test_a_prompt_must_fit_in_front_of_every_question(small_data: dict[str, Path], sandbox: Sandbox) -> None:
    """Tabs are a token each: the longest question leaves room for a prompt of 9 tokens, then for one of 8."""
    made = material(small_data, sandbox, **SETTINGS)  # type: ignore[arg-type]
    tools, short = ToolCycle(made), example_of(question("?"), made.context.tokenizer)
    room = 320 - 9 - len(short.prompt) - len(short.completion)

    def ask(*validation: Question) -> None:
        questions = QuestionBank(bank().train, validation, bank().test, spent_usd=0.0, note="")
        made.context = QuestionContext(folders=small_data, bank=questions, sandbox=sandbox)

    ask(*[question("?" + "\t" * room)] * 2)
    PersonaCycle(made, tools)
    ask(question("?"), question("?" + "\t" * (room + 1)))
    with pytest.raises(ValueError, match="prompt of up to 9 tokens and 312 of a question .* exceed max_seq_len = 320"):
        PersonaCycle(made, tools)
