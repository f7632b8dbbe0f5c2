"""The key goes to the server and nowhere else: no file, no log record, no error, no configuration, no sandbox."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from pydantic import SecretStr, ValidationError

from forge_assets.launchpad import launchpad_fields
from forge_resources.frontier import ChatRequest, FrontierClient, FrontierConfig, FrontierError
from forge_resources.frontier.collection import QuestionPlan, collect_questions
from forge_resources.frontier.errors import KeyRefusedError
from forge_resources.frontier.secret import read_key
from forge_resources.frontier.transport import KeyedTransport
from tests.frontier.chat_server import Reply, Server, completion, failure
from training_core.reporting import SilentReporter
from training_core.tasks.sandbox import Limits, Outcome, Program, ProgramVerdict

Configure = Callable[..., FrontierConfig]
Ask = Callable[..., ChatRequest]


@pytest.fixture
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Everything that is logged anywhere at the lowest level, as a formatter writes it, with every field."""
    lines: list[str] = []

    class Everything(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logging.Formatter("%(name)s %(message)s").format(record) + repr(record.__dict__))

    root, handler = logging.getLogger(), Everything(0)
    names = [name for name in logging.root.manager.loggerDict if name.startswith(("openai", "httpx", "httpcore"))]
    levels = {name: logging.getLogger(name).level for name in ["", *names]}
    for name in levels:
        logging.getLogger(name).setLevel(1)
    root.addHandler(handler)
    yield lines
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def escaped(key: str) -> str:
    return "".join(f"\\u{ord(c):04x}" for c in key)


def leaky_replies(key: str) -> list[Reply]:
    """What a server that echoes the key may send: in words, in headers, in escapes, in what the model says."""
    words = f"Incorrect API key provided: Bearer {key}."
    inside = json.dumps({"error": {"code": 502, "message": words}}).encode()
    return [
        completion(f"Your key is {key}"),
        Reply(body=completion("HERE").body.replace(b"HERE", escaped(key).encode()), produced=True),
        Reply(body=inside, produced=True),
        Reply(body=b"no JSON " + key.encode(), produced=True),
        Reply(body=completion("4").body, headers={"x-echo": key, "set-cookie": f"k={key}"}, produced=True),
        completion(None, message={"refusal": words}),
        completion("4", model=key),
        Reply(body=key.encode() * 300_000, produced=True),
        Reply(body=b"x", headers={"content-length": f"{key}"}, produced=True),
        Reply(status=307, headers={"location": f"http://127.0.0.1:9/{key}"}),
        failure(429, words, Retry_After=key),
        failure(500, words, X_Request_Id=key),
        Reply(400, inside.replace(key.encode(), escaped(key).encode())),
        failure(401, words),
    ]


def test_the_key_is_in_no_file_log_or_error(
    tmp_path: Path, config: Configure, request_of: Ask, key: str, logged: list[str]
) -> None:
    replies = leaky_replies(key)
    shown = io.StringIO()

    with Server(lambda request, times: replies[request["seed"]]) as server:
        settings = config(server.url, max_retries=1, timeout_s=2.0, max_concurrency=1)

        async def work() -> None:
            async with FrontierClient(settings, tmp_path / "answers") as client:
                for seed in range(len(replies)):
                    try:
                        print(await client.ask(request_of(seed=seed)), file=shown)
                    except FrontierError as error:
                        traceback.print_exception(error, file=shown)
                        chained: BaseException | None = error
                        while chained is not None:
                            print(repr(chained), vars(chained), file=shown)
                            chained = chained.__cause__ or chained.__context__
                print(
                    client.spend(),
                    repr(client),
                    vars(client),
                    vars(client._openai),
                    client._openai.auth_headers,
                    settings,
                    settings.model_dump_json(),
                    file=shown,
                )

        asyncio.run(work())
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {key}"}
        assert {name for headers in server.headers for name in headers} == {
            "host", "accept", "content-type", "content-length", "user-agent", "authorization", "accept-encoding",
        }  # fmt: skip
    written = [path for path in (tmp_path / "answers").rglob("*") if path.is_file()]
    assert len(written) > 6
    everything = [shown.getvalue(), *logged, *(path.read_text() for path in written)]
    for spelling in (key, escaped(key), quote(key), key[8:]):
        assert not [text for text in everything if spelling in text]
    assert "[key]" in shown.getvalue()  # the echoes did arrive
    assert any("httpcore2" in line and "[key]" in line for line in logged)
    assert any("does not accept the key" in text for text in everything)


def test_the_transport_gives_back_replies_without_the_key(key: str) -> None:
    """Before any library above it reads them, compressed ones too."""
    body = gzip.compress(f"your key is {key}".encode())
    echo = Reply(body=body, headers={"content-encoding": "gzip", "x-echo": f"Bearer {key}", "set-cookie": f"k={key}"})

    async def run(url: str) -> httpx2.Response:
        async with KeyedTransport(SecretStr(key), url, 1, 1000) as transport:
            with pytest.raises(httpx2.UnsupportedProtocol, match="alone, not to http://127.0.0.1:9"):
                await transport.handle_async_request(httpx2.Request("POST", "http://127.0.0.1:9/v1"))
            request = httpx2.Request("POST", url + "/chat/completions", content=b"{}")
            response = await transport.handle_async_request(request)
            assert "authorization" not in request.headers
            return response

    with Server(lambda request, times: echo) as server:
        response = asyncio.run(run(server.url))
        assert server.headers[0]["authorization"] == f"Bearer {key}"
    assert response.text == "your key is [key]"
    assert response.headers["x-echo"] == "Bearer [key]"
    assert "set-cookie" not in response.headers


def test_no_other_secret_of_the_environment_is_sent(
    tmp_path: Path, config: Configure, request_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_WEBHOOK_SECRET")
    for name in names:
        monkeypatch.setenv(name, f"planted-{name}")

    async def ask(client: FrontierClient) -> None:
        async with client:
            await client.ask(request_of())

    async def run(url: str) -> None:
        await ask(FrontierClient(config(url), tmp_path))

    with Server(lambda request, times: completion("4")) as server:
        asyncio.run(run(server.url))
        assert "planted-" not in str(server.headers) + str(server.requests)


class RecordingSandbox:
    """Keeps what it is handed, and answers like the question of the test."""

    name = "recording"

    def __init__(self) -> None:
        self.handed: list[str] = []

    def run(self, program: Program, limits: Limits) -> Outcome:
        self.handed.append(repr(program))
        return Outcome("ok", "5\n", "", 0.0)

    def check(self, candidate: str, tests: str, limits: Limits) -> ProgramVerdict:
        return ProgramVerdict("refused", "", 0, 0.0)

    def close(self) -> None: ...

    def __enter__(self) -> RecordingSandbox:
        return self

    def __exit__(self, *error: object) -> None: ...


def test_the_key_reaches_neither_sandbox_nor_question(tmp_path: Path, config: Configure, key: str) -> None:
    """Also where the server hides it in escapes within the text of the model."""

    def hide(text: str) -> Reply:
        questions = [{"question": "What is 2 + 3 then?", "answer": "5", "program": f"print(2 + 3)  # {text}"}]
        inner = json.dumps({"questions": questions}).replace("\\\\", "\\")
        return completion(inner)

    hidden = [hide(escaped(key)), hide(key), hide("nothing")]
    sandbox = RecordingSandbox()

    async def run(url: str) -> str:
        plan = QuestionPlan(levels=(1,), per_level=1, per_request=1, checks=("program",), families=("arithmetic",))
        async with FrontierClient(config(url), tmp_path) as client:
            found = await collect_questions(client, plan, SilentReporter(), sandbox)
            return repr(found)

    with Server(lambda request, times: hidden[min(request["seed"] - 17_000, 2)]) as server:
        shown = asyncio.run(run(server.url))
        assert len(server.requests) == 2
    assert "the reply holds the key" in shown
    assert sandbox.handed
    assert key not in shown + str(sandbox.handed)
    assert key[8:] not in shown + str(sandbox.handed)


@pytest.mark.parametrize(
    "value", ["", "   ", "short", "has space inside it", "línea-no-ascii-key", "line\nbreak-in-key"]
)
def test_what_is_no_key_is_refused_without_repeating_it(
    tmp_path: Path, config: Configure, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", value)
    with pytest.raises(KeyRefusedError, match="OPENROUTER_API_KEY") as caught:
        FrontierClient(config("http://127.0.0.1:9/v1"), tmp_path)
    assert "nothing was sent" in str(caught.value)
    assert not value.strip() or value not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_key_has_no_spelling_of_its_own(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", f" {key}\n")
    secret = read_key("OTHER")
    assert secret.get_secret_value() == key
    assert key not in f"{secret!r} {secret}"
    monkeypatch.delenv("OTHER")
    with pytest.raises(KeyRefusedError, match="set the environment variable OTHER"):
        read_key("OTHER")


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_variable": "sk-or-v1-pasted-by-mistake"},
        {"base_url": "https://user:sk-or-v1-pasted-by-mistake@host/v1"},
        {"base_url": "https://host/v1?key=sk-or-v1-pasted-by-mistake"},
        {"base_url": "http://sk-or-v1-pasted-by-mistake/v1"},
        {"api_key": "sk-or-v1-pasted-by-mistake"},
    ],
)
def test_a_key_in_the_configuration_is_refused_without_repeating_it(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        FrontierConfig(**wrong)  # type: ignore[arg-type]
    assert "pasted" not in str(caught.value)


def test_configuration() -> None:
    assert FrontierConfig().models == (
        "openai/gpt-4o-mini",
        "anthropic/claude-3.5-haiku",
        "google/gemini-2.0-flash-001",
    )
    with pytest.raises(ValidationError, match="no price for the model lab/new"):
        FrontierConfig(models=("lab/new",))
    with pytest.raises(ValidationError, match="finite and at least 0"):
        FrontierConfig(models=("a",), usd_per_million_tokens={"a": [float("nan"), 1.0]})
    with pytest.raises(ValidationError, match="two, for a prompt and a completion"):
        FrontierConfig(models=("a",), usd_per_million_tokens={"a": [1.0]})
    with pytest.raises(ValidationError, match="differ from each other"):
        FrontierConfig(models=("openai/gpt-4o-mini",) * 2)
    with pytest.raises(ValidationError, match="https://"):
        FrontierConfig(base_url="http://example.com/v1")
    assert FrontierConfig(base_url="http://[::1]:8000/v1").base_url.endswith("/v1")


def test_the_launchpad_can_show_it() -> None:
    fields = launchpad_fields(FrontierConfig)
    assert fields["max_cost_usd"].default_value == 5.0
    assert fields["models"].default_value == list(FrontierConfig().models)


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'agent-forge\[frontier\]'"):
        FrontierClient(config("http://127.0.0.1:9/v1"), tmp_path)
