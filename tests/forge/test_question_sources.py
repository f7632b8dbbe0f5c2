"""The question bank as an asset, with and without frontier models: a local server stands in for the real one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from forge_instance import make_home, opened

from forge_assets import data
from forge_assets.launchpad import launchpad_fields
from forge_assets.question_sources import frontier_questions
from forge_resources.frontier.config import DEFAULT_MODELS, DEFAULT_PRICES
from forge_resources.model_store import ModelStore
from forge_resources.sandbox import open_sandbox
from forge_resources.tracking import MlflowTracking
from tests.frontier.chat_server import Reply, Request, Server, completion, failure
from training_core.reporting import SilentReporter
from training_core.tasks.questions.bank import Collected, QuestionBankConfig, make_question_bank, open_bank
from training_core.tasks.questions.ladder import cells, make
from training_core.tasks.questions.question import LEVELS, Question
from training_core.tasks.questions.tools import ToolBox
from training_core.tasks.sandbox import SandboxUnavailableError

KEY = "sk-or-v1-planted0123456789abcdef"
REPOSITORY = Path(__file__).parents[2]
PER_LEVEL = 4
Answer = Callable[[Request, int], Reply]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def settings(url: str, **changes: Any) -> QuestionBankConfig:
    values = {
        "source": "both",
        "train_per_level": 12,
        "held_out_per_level": 10,
        "frontier_per_level": PER_LEVEL,
        "frontier_models": ["lab/one", "lab/two", "lab/three"],
        "frontier_prices": [1.0, 10.0] * 3,
        "frontier_base_url": url,
        "frontier_timeout_s": 10.0,
        "frontier_retries": 0,
    }
    return QuestionBankConfig(**values | changes)


def told(request: Request) -> tuple[int, int]:
    """The level that is asked for, and how many questions."""
    text = request["messages"][1]["content"]
    return int(re.findall(r"Difficulty (\d+)", text)[0]), int(re.findall(r"Write (\d+)", text)[0])


def written(request: Request) -> Reply:
    """Sums that no other request has, with programs that compute them."""
    level, number = told(request)
    items = []
    for k in range(number):
        a = request["seed"] * 10 + k
        code = f"a = {a}\nprint(a + {level})"
        asked = f"Ada has {a} coins and finds {level} more in a drawer. How many coins has she then?"
        items.append({"question": asked, "answer": str(a + level), "program": code})
    return completion(json.dumps({"questions": items}))


def honest(request: Request, times: int) -> Reply:
    return written(request)


def collect(config: QuestionBankConfig, folder: Path) -> tuple[Any, Collected]:
    return frontier_questions(config, folder, SilentReporter(), ["What is 2 + 2?"])


def bank_of(config: QuestionBankConfig, out: Path, found: Any, collected: Collected) -> tuple[Any, str]:
    """Sources of the training questions by level, and everything that was written."""
    out.mkdir()
    make_question_bank(config, out, SilentReporter(), (), found, collected)
    bank = open_bank(out)
    assert Counter(q.level for q in bank.train) == dict.fromkeys(LEVELS, config.train_per_level)
    sources = Counter((q.level, q.provenance.source) for q in bank.train)
    return sources, "".join(path.read_text() for path in sorted(out.iterdir()))


def test_generators_alone_ask_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY")
    with Server(honest) as server:
        assert collect(settings(server.url, source="generators"), tmp_path / "answers") == ((), Collected())
        assert not server.requests
    assert not (tmp_path / "answers").exists()


def test_defaults_are_those_of_the_client() -> None:
    config = QuestionBankConfig()
    assert tuple(config.frontier_models) == DEFAULT_MODELS
    assert config.frontier_prices == [price for model in DEFAULT_MODELS for price in DEFAULT_PRICES[model]]
    fields = launchpad_fields(QuestionBankConfig)
    assert set(fields) == set(QuestionBankConfig.model_fields)


def test_both_sources(tmp_path: Path) -> None:
    with Server(honest) as server:
        config = settings(server.url)
        found, collected = collect(config, tmp_path / "answers")
        assert len(found) == 10 * PER_LEVEL
        assert collected.note == ""
        assert collected.spent_usd == pytest.approx(0.001 * len(server.requests))
        sources, text = bank_of(config, tmp_path / "bank", found, collected)
        assert all(sources[level, "frontier"] == PER_LEVEL for level in LEVELS)
        assert all(sources[level, "generator"] == 12 - PER_LEVEL for level in LEVELS)
        asked = len(server.requests)
        assert collect(config, tmp_path / "answers") == (found, collected)
        assert len(server.requests) == asked
        assert KEY in server.headers[0]["authorization"]
    assert KEY not in text
    assert KEY not in str((found, collected))


def refused(request: Request, times: int) -> Reply:
    return failure(401, f"no auth for {KEY}")


def broke(request: Request, times: int) -> Reply:
    return honest(request, times) if told(request)[0] < 4 else failure(402, "insufficient credits")


def hanging(request: Request, times: int) -> Reply:
    reply = honest(request, times)
    if told(request)[0] > 2:
        reply.delay_s = 5.0
    return reply


def all_but_one(request: Request, times: int) -> Reply:
    return honest(request, times) if told(request)[0] < 10 else completion(json.dumps({"questions": []}))


def down(request: Request, times: int) -> Reply:
    return failure(503, "overloaded")


@pytest.mark.parametrize(
    ("answer", "changes", "says", "levels"),
    [
        (refused, {}, "does not accept the key", 0),
        (broke, {}, "no credit left", 3),
        (hanging, {"frontier_timeout_s": 0.3}, "none of the last .* requests brought an answer", 2),
        (all_but_one, {}, "max_requests_per_level = 100 is reached; level 10 lacks 4", 9),
        (honest, {"frontier_max_cost_usd": 0.022}, "cap of .0.022 is reached", 2),
        (down, {}, "none of the last", 0),
    ],
    ids=["wrong key", "no credit", "hanging", "a level without questions", "cap", "down"],
)
def test_what_was_earned_is_used_and_the_reason_stands(
    tmp_path: Path, answer: Answer, changes: dict[str, Any], says: str, levels: int
) -> None:
    with Server(answer) as server:
        config = settings(server.url, **changes)
        found, collected = collect(config, tmp_path / "answers")
        assert re.search(says, collected.note), collected.note
        by_level = Counter(question.level for question in found)
        assert sum(number == PER_LEVEL for number in by_level.values()) >= levels
        sources, text = bank_of(config, tmp_path / "bank", found, collected)
        assert sum(sources[level, "frontier"] for level in LEVELS) == len(found)
        assert json.loads((tmp_path / "bank" / "bank.json").read_text())["note"] == collected.note
        assert KEY not in text
        with pytest.raises(
            ValueError, match=rf"frontier models gave {len(found)} of 40 questions: .*not paid"
        ) as error:
            collect(config.model_copy(update={"source": "frontier"}), tmp_path / "answers")
        assert re.search(says, str(error.value)) or "not sent again" in str(error.value)
        assert KEY not in str(error.value)


def test_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY")
    with Server(honest) as server:
        config = settings(server.url)
        found, collected = collect(config, tmp_path / "answers")
        assert found == ()
        assert "set the environment variable OPENROUTER_API_KEY" in collected.note
        sources, _ = bank_of(config, tmp_path / "bank", found, collected)
        assert sources[5, "generator"] == 12
        with pytest.raises(ValueError, match=r"gave 0 of 40 questions: there is no key.*or set source to \"both\""):
            collect(settings(server.url, source="frontier"), tmp_path / "answers")
        assert not server.requests


def test_without_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(kind: str = "auto") -> Any:
        raise SandboxUnavailableError("model-written code is refused: no engine")

    monkeypatch.setattr("forge_assets.question_sources.open_sandbox", none)
    with Server(honest) as server:
        found, collected = collect(settings(server.url), tmp_path / "answers")
        assert (found, collected.note) == ((), "model-written code is refused: no engine")
        assert not server.requests


def test_frontier_alone(tmp_path: Path) -> None:
    with Server(honest) as server:
        config = settings(server.url, source="frontier")
        found, collected = collect(config, tmp_path / "answers")
        assert Counter(question.level for question in found) == dict.fromkeys(LEVELS, PER_LEVEL)
        (tmp_path / "bank").mkdir()
        make_question_bank(config, tmp_path / "bank", SilentReporter(), (), found, collected)
        bank = open_bank(tmp_path / "bank")
        assert bank.train == list(found)
        assert len(bank.test) == 100


def test_one_model_is_verified_by_programs_alone(tmp_path: Path) -> None:
    with Server(honest) as server:
        config = settings(server.url, frontier_models=["lab/one"], frontier_prices=[1.0, 10.0])
        found, collected = collect(config, tmp_path / "answers")
        assert {question.check for question in found} == {"program"}
        assert not collected.judged


DRIVER = """
import sys
from pathlib import Path
from forge_assets.question_sources import frontier_questions
from training_core.tasks.questions.bank import QuestionBankConfig
from training_core.reporting import SilentReporter
config = QuestionBankConfig.model_validate_json(sys.argv[1])
frontier_questions(config, Path(sys.argv[2]), SilentReporter(), [])
"""


def test_killed_and_run_again_pays_nothing_twice(tmp_path: Path) -> None:
    """Killed while requests are in flight: what was answered is not asked again, what was in flight counts as lost."""

    def slowly(request: Request, times: int) -> Reply:
        reply = written(request)
        reply.delay_s = 0.2
        return reply

    with Server(slowly) as server:
        config = settings(server.url)
        command = [sys.executable, "-c", DRIVER, config.model_dump_json(), str(tmp_path / "answers")]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, cwd=REPOSITORY)
        until = time.monotonic() + 60
        while len(list((tmp_path / "answers").glob("answers/*/*.json"))) < 3 and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        answered = len(list((tmp_path / "answers").glob("answers/*/*.json")))
        assert 3 <= answered < 10
        found, collected = collect(config, tmp_path / "answers")
        assert len(found) == 10 * PER_LEVEL
        assert max(server.produced.values()) == 1
        paid = sum(server.produced.values())
        assert collect(config, tmp_path / "answers") == (found, collected)
        assert sum(server.produced.values()) == paid
        assert collected.spent_usd <= 0.001 * paid + 1e-9


@pytest.fixture
def home(memory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("home", numbered=True)
    make_home(folder)
    with opened(folder, monkeypatch) as instance:
        yield instance


def materialized(instance: dg.DagsterInstance, config: QuestionBankConfig, *assets: str) -> dg.ExecuteInProcessResult:
    run_config = {
        "task_bank": {"config": {"train_per_family": 20, "held_out_per_family": 10}},
        "question_bank": {"config": config.model_dump(mode="json")},
    }
    return dg.materialize(
        [data.task_bank, data.question_bank],
        selection=list(assets),
        instance=instance,
        resources={"store": ModelStore(), "tracking": MlflowTracking(enabled=False)},
        run_config={"ops": {name: run_config[name] for name in assets}},
        raise_on_error=False,
    )


def test_the_asset(home: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(honest) as server:
        config = settings(server.url)
        assert materialized(home, config, "task_bank", "question_bank").success
        first = home.get_latest_materialization_event(dg.AssetKey("question_bank"))
        assert first is not None
        metadata = first.asset_materialization.metadata
        assert metadata["questions_train"].value == 120
        assert metadata["frontier_questions"].value == 40
        assert metadata["spent_usd"].value == pytest.approx(0.001 * len(server.requests))
        assert KEY not in str(metadata)
        asked = len(server.requests)
        assert materialized(home, config, "question_bank").success
        again = home.get_latest_materialization_event(dg.AssetKey("question_bank"))
        assert again is not None
        assert again.asset_materialization.metadata["digest"].value == metadata["digest"].value
        assert len(server.requests) == asked
    monkeypatch.delenv("OPENROUTER_API_KEY")
    assert not materialized(home, config.model_copy(update={"source": "frontier"}), "question_bank").success
    assert materialized(home, config, "question_bank").success
    last = home.get_latest_materialization_event(dg.AssetKey("question_bank"))
    assert last is not None
    assert "there is no key" in last.asset_materialization.metadata["note"].value
    folder = Path(os.environ["DAGSTER_HOME"]) / "forge"
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl")]
    assert len(files) > 20
    assert not [path for path in files if KEY in path.read_text()]


def test_every_call_of_a_solution_is_answered_alike_by_the_sandbox() -> None:
    """What stands behind a call in a solution is what the tools give when a model makes the same call."""
    answered: Counter[str] = Counter()
    with open_sandbox("embedded") as sandbox:
        tools = ToolBox(sandbox)
        for level in LEVELS:
            for cell in cells(level):
                for question in (make(cell, seed) for seed in range(4)):
                    for call in _calls(question):
                        found = tools.answer(call)
                        assert found is not None
                        assert question.solution.startswith(call + found[1]), (question, found)
                        assert found[0].status == "ok"
                        answered[found[0].tool] += 1
    assert answered["calculator"] > 40
    assert answered["python"] > 40


def _calls(question: Question) -> list[str]:
    """The solution up to the end of each call, as a model would have written it."""
    return [question.solution[: match.end()] for match in re.finditer(r"<<[^=<>]+=|</py>", question.solution)]
