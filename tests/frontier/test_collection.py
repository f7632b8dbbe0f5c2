"""Only verified questions come through, whatever the models say, and what they cost is known."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forge_resources.frontier import FrontierClient, FrontierConfig
from forge_resources.frontier.collection import Collection, QuestionPlan, collect_questions
from forge_resources.frontier.questions import parse_answer, parse_questions
from forge_resources.frontier.verification import computes
from forge_resources.sandbox import open_sandbox
from tests.frontier.chat_server import Reply, Request, Server, completion, failure
from training_core.reporting import SilentReporter
from training_core.tasks.questions.question import normalise_answer, read_questions, write_questions
from training_core.tasks.sandbox import Sandbox

Configure = Callable[..., FrontierConfig]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox("embedded") as opened:
        yield opened


def collect(
    config: FrontierConfig,
    folder: Path,
    plan: QuestionPlan,
    sandbox: Sandbox | None = None,
    avoid: tuple[str, ...] = (),
) -> Collection:
    async def run() -> Collection:
        async with FrontierClient(config, folder) as client:
            return await collect_questions(client, plan, SilentReporter(), sandbox, avoid)

    return asyncio.run(run())


def asks_for_questions(request: Request) -> bool:
    return "examinations" in request["messages"][0]["content"]


def written(request: Request, change: int = 0, program: str | None = None) -> Reply:
    """Sums that no other request has, their answers off by `change`."""
    number = int(re.findall(r"Write (\d+)", request["messages"][1]["content"])[0])
    level = int(re.findall(r"Difficulty (\d+)", request["messages"][1]["content"])[0])
    items = []
    for k in range(number):
        a, b = request["seed"] * 10 + k, level
        code = f"a = {a}\nprint(a + {b})" if program is None else program.replace("ANSWER", str(a + b))
        items.append({"question": f"What is {a} + {b}?", "answer": str(a + b + change), "program": code})
    return completion(json.dumps({"questions": items}))


def solved(request: Request, change: int = 0) -> Reply:
    a, b = re.findall(r"What is (\d+) \+ (\d+)", request["messages"][1]["content"])[0]
    return completion(json.dumps({"reasoning": "sum", "answer": f"{int(a) + int(b) + change}."}))


def honest(request: Request, times: int) -> Reply:
    return written(request) if asks_for_questions(request) else solved(request)


def test_questions_verified_by_program(tmp_path: Path, config: Configure, sandbox: Sandbox) -> None:
    plan = QuestionPlan(levels=(1, 2, 10), per_level=5, per_request=2, checks=("program",))
    with Server(honest) as server:
        found = collect(config(server.url), tmp_path, plan, sandbox)
        assert not found.stopped
        assert [q.level for q in found.questions] == [1] * 5 + [2] * 5 + [10] * 5
        for question in found.questions:
            a, b = re.findall(r"\d+", question.prompt)
            assert question.answer == str(int(a) + int(b))
            assert (question.check, question.provenance.source) == ("program", "frontier")
            assert question.provenance.cost_usd == pytest.approx(0.001 / 2)
        assert {q.provenance.name for q in found.questions} == {"lab/one", "lab/two", "lab/three"}
        assert len(server.requests) == 9
        assert found.spend.spent_usd == pytest.approx(0.009)
        assert {r["response_format"]["json_schema"]["strict"] for r in server.requests} == {True}
        again = collect(config(server.url), tmp_path, plan, sandbox)
        assert again.questions == found.questions
        assert len(server.requests) == 9
    path = tmp_path / "questions.jsonl"
    assert write_questions(path, found.questions) == 15
    assert tuple(read_questions(path)) == found.questions


def test_questions_verified_by_agreement(tmp_path: Path, config: Configure) -> None:
    plan = QuestionPlan(levels=(3,), per_level=4, per_request=4, checks=("agreement",))
    with Server(honest) as server:
        found = collect(config(server.url), tmp_path, plan)
        (author,) = {q.provenance.name for q in found.questions}
        assert [q.check for q in found.questions] == ["agreement"] * 4
        for question in found.questions:
            assert set(question.provenance.verified_by) == {"lab/one", "lab/two", "lab/three"} - {author}
            assert question.provenance.cost_usd == pytest.approx(0.001 / 4 + 0.002)
        asked = [r for r in server.requests if not asks_for_questions(r)]
        assert len(asked) == 8
        assert author not in {r["model"] for r in asked}
        assert not [r for r in asked if "answer is" in str(r["messages"])]
        assert {count == agreed for count, agreed in found.judged.values()} == {True}


def test_the_next_check_is_asked_where_one_cannot_tell(tmp_path: Path, config: Configure, sandbox: Sandbox) -> None:
    """No program, one that states the answer, one that the sandbox cannot run: other models are asked."""
    unknown_to_the_sandbox = "import fractions\nprint(fractions.Fraction(ANSWER) if 2 > 1 else 0)"
    programs = iter(["", "print(ANSWER)", unknown_to_the_sandbox])

    def answer(request: Request, times: int) -> Reply:
        return written(request, program=next(programs)) if asks_for_questions(request) else solved(request)

    with Server(answer) as server:
        settings = config(server.url, max_concurrency=1)
        found = collect(settings, tmp_path, QuestionPlan(levels=(1,), per_level=3, per_request=1), sandbox)
        assert [q.check for q in found.questions] == ["agreement"] * 3
        assert len([r for r in server.requests if asks_for_questions(r)]) == 3


def test_a_model_that_never_answers_correctly(tmp_path: Path, config: Configure, sandbox: Sandbox) -> None:
    def answer(request: Request, times: int) -> Reply:
        return written(request, change=1) if asks_for_questions(request) else solved(request)

    plan = QuestionPlan(levels=(1,), per_level=8, per_request=4, give_up_after=8)
    with Server(answer) as server:
        found = collect(config(server.url), tmp_path, plan, sandbox)
        assert found.questions == ()
        assert "every model was left out" in found.stopped
        assert found.rejected["the program computes another answer"] >= 24
        assert "lab/two left out: none of its first 8 candidates verified" in str(found.rejected)
        assert len(server.requests) <= 12
        assert "stopped: every model" in found.describe()


def test_one_bad_author_is_left_out_and_one_bad_judge_is_named(
    tmp_path: Path, config: Configure, sandbox: Sandbox
) -> None:
    def answer(request: Request, times: int) -> Reply:
        wrong = int(request["model"] == "lab/two")
        return written(request, wrong) if asks_for_questions(request) else solved(request, wrong)

    plan = QuestionPlan(levels=(1,), per_level=20, per_request=2, give_up_after=4, checks=("program",))
    with Server(answer) as server:
        found = collect(config(server.url), tmp_path / "a", plan, sandbox)
        assert len(found.questions) == 20
        assert {q.provenance.name for q in found.questions} == {"lab/one", "lab/three"}
        by_agreement = plan.model_copy(update={"checks": ("agreement",), "give_up_after": 2})
        found = collect(config(server.url), tmp_path / "b", by_agreement)
        assert found.questions == ()
        asked, agreed = found.judged["lab/two"]
        assert asked > 0
        assert agreed == 0
        assert f"lab/two agreed with 0 of {asked} answers" in found.describe()


def test_a_withdrawn_model_is_left_out(tmp_path: Path, config: Configure, sandbox: Sandbox) -> None:
    """The program check goes on with two models; agreement says that it cannot."""

    def answer(request: Request, times: int) -> Reply:
        return failure(404, "no endpoints") if request["model"] == "lab/two" else honest(request, times)

    plan = QuestionPlan(levels=(1, 2), per_level=6, per_request=2, max_requests_per_level=6)
    with Server(answer) as server:
        found = collect(config(server.url), tmp_path / "a", plan, sandbox)
        assert len(found.questions) == 12
        assert {q.check for q in found.questions} == {"program"}
        assert any("lab/two left out: the server refuses requests for lab/two" in why for why in found.rejected)
        found = collect(config(server.url), tmp_path / "b", plan.model_copy(update={"checks": ("agreement",)}))
        assert found.questions == ()
        assert "max_requests_per_level = 6 is reached; level 1 lacks 6, level 2 lacks 6" in found.stopped
        assert "fewer than two other models are available" in found.rejected


def test_duplicates_and_held_out_prompts_are_dropped(tmp_path: Path, config: Configure, sandbox: Sandbox) -> None:
    texts = [("What is 1 + 2?", "3"), ("what  is 1 + 2?", "3"), ("What is 1 + 3?", "4"), ("What is 2 + 3?", "5")]
    items = [{"question": q, "answer": a, "program": f"print({q[7:-1].strip()[1:]} + 0)"} for q, a in texts]
    items = [item | {"program": f"x = 0\nprint({item['question'].strip('?').split('is')[1]})"} for item in items]
    reply = completion(json.dumps({"questions": items}))
    plan = QuestionPlan(levels=(1,), per_level=4, per_request=4, max_requests_per_level=2, checks=("program",))
    with Server(lambda request, times: reply) as server:
        found = collect(config(server.url), tmp_path, plan, sandbox, avoid=("What is 2 + 3?",))
    assert [q.prompt for q in found.questions] == ["What is 1 + 2?", "What is 1 + 3?"]
    assert {why: n for why, n in found.rejected.items() if "duplicate" in why} == {
        "duplicate: repeated": 5,
        "duplicate: avoided": 1,
    }
    assert "max_requests_per_level = 2 is reached; level 1 lacks 2" in found.stopped


@pytest.mark.parametrize(
    ("failing", "says"),
    [(failure(402), "no credit left"), (failure(401), "does not accept the key"), (failure(500), "brought an answer")],
)
def test_what_was_earned_is_kept(
    tmp_path: Path, config: Configure, sandbox: Sandbox, failing: Reply, says: str
) -> None:
    """The server turns after five requests; what came before is returned, and a later run goes on from it."""
    plan = QuestionPlan(levels=(1,), per_level=12, per_request=1, checks=("program",), max_requests_per_level=20)
    with Server(honest) as server:
        server.answer = lambda request, times: honest(request, times) if len(server.requests) <= 5 else failing
        found = collect(config(server.url, max_concurrency=1, max_retries=0), tmp_path, plan, sandbox)
        assert len(found.questions) == 5
        assert says in found.stopped
        server.answer = honest
        rest = collect(config(server.url), tmp_path, plan, sandbox)
        assert len(rest.questions) == 12
        assert max(server.produced.values()) == 1
        assert set(found.questions) <= set(rest.questions)


def test_a_silent_server_is_left_after_a_few_requests(tmp_path: Path, config: Configure, sandbox: Sandbox) -> None:
    plan = QuestionPlan(levels=(1,), per_level=2, per_request=1, checks=("program",))
    with Server(lambda request, times: Reply(delay_s=30.0)) as server:
        found = collect(config(server.url, timeout_s=0.2), tmp_path, plan, sandbox)
        assert len(server.requests) <= 4
    assert "none of the last 4 requests brought an answer" in found.stopped
    assert found.spend.lost == 4


def test_the_cap_ends_a_collection(tmp_path: Path, config: Configure, sandbox: Sandbox) -> None:
    plan = QuestionPlan(levels=(1,), per_level=20, per_request=1, checks=("program",))
    with Server(honest) as server:
        found = collect(config(server.url, max_cost_usd=0.0101), tmp_path, plan, sandbox)
        assert "the cap of $0.0101 is reached" in found.stopped
        assert 0 < len(found.questions) < 20
        assert found.spend.spent_usd == pytest.approx(0.001 * len(found.questions))
        assert math.fsum(q.provenance.cost_usd for q in found.questions) <= 0.0101


def test_a_check_that_cannot_be_made_is_refused(tmp_path: Path, config: Configure) -> None:
    url = "http://127.0.0.1:9/v1"
    with pytest.raises(ValueError, match="needs a sandbox"):
        collect(config(url), tmp_path, QuestionPlan())
    with pytest.raises(ValueError, match="takes an author and two other models, got 2"):
        collect(config(url, models=("lab/one", "lab/two")), tmp_path, QuestionPlan(checks=("agreement",)))
    with pytest.raises(ValueError, match="levels lie in"):
        QuestionPlan(levels=(0, 1))
    with pytest.raises(ValueError, match="levels lie in"):
        QuestionPlan(levels=(1, 1))
    with pytest.raises(ValueError, match="families must be among"):
        QuestionPlan(families=("poetry",))


GOOD = {"question": "What is 2 + 2?", "answer": "4", "program": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "[]",
        "{}",
        '{"questions": {}}',
        '{"questions": []}',
        json.dumps({"questions": [GOOD], "note": "x"}),
        "Here you are: " + json.dumps({"questions": [GOOD]}),
        json.dumps({"questions": [GOOD | {"answer": 4}]}),
        json.dumps({"questions": [GOOD | {"answer": ""}]}),
        json.dumps({"questions": [GOOD | {"answer": " "}]}),
        json.dumps({"questions": [GOOD | {"answer": "a\u0000"}]}),
        json.dumps({"questions": [GOOD | {"answer": "x" * 201}]}),
        json.dumps({"questions": [GOOD | {"extra": "1"}]}),
        json.dumps({"questions": [{"question": "What is 2 + 2?", "answer": "4"}]}),
        json.dumps({"questions": [GOOD | {"question": "short"}]}),
        json.dumps({"questions": ["What is 2 + 2?"]}),
        '{"questions": [{"question": "What is \\ud800 + 2?", "answer": "4", "program": ""}]}',
        "[" * 10_000,
    ],
)
def test_malformed_questions_are_rejected(text: str) -> None:
    parsed = parse_questions(text, 4)
    assert parsed.candidates == ()
    assert len(parsed.rejected) == 1
    assert "malformed" in parsed.rejected[0]


def test_good_questions_are_taken_beside_bad_ones() -> None:
    both = json.dumps({"questions": [GOOD | {"answer": 4}, GOOD, GOOD, GOOD]})
    for text in (both, f"```json\n{both}\n```", f"\n```\n{both}\n```\n"):
        parsed = parse_questions(text, 2)
        assert [c.answer for c in parsed.candidates] == ["4", "4"]
        assert [why.split(":")[0] for why in parsed.rejected] == [
            "malformed question",
            "more questions than were asked for",
        ]


def test_solutions_are_parsed_strictly() -> None:
    assert parse_answer('{"reasoning": "", "answer": " 4 "}') == "4"
    wrong = ["4", '{"answer": "4"}', '{"reasoning": "", "answer": 4}', '{"reasoning": "", "answer": " "}']
    assert [parse_answer(text) for text in wrong] == [None] * 4


@pytest.mark.parametrize(
    ("program", "question", "answer", "expected"),
    [
        ("print(42)", "What is 40 + 2?", "42", False),
        ("x = 42\nprint(x)", "What is 40 + 2?", "42", False),
        ("print('42')", "What is 40 + 2?", "42", False),
        ("print(42 + 0)", "What is 40 + 2?", "42", False),
        ("print(40 + 2)", "What is 40 + 2?", "42", True),
        ("print(4 * 1)", "What is 4 * 1?", "4", True),
        ("print('Yes' if 3 > 2 else 'No')", "Is 3 more than 2?", "yes", True),
        ("print('Yes')", "Is 3 more than 2?", "yes", False),
        ("print(", "What is 4 * 1?", "4", True),
    ],
)
def test_a_program_must_compute(program: str, question: str, answer: str, expected: bool) -> None:
    assert computes(program, question, answer) is expected
    assert normalise_answer(answer) == answer
