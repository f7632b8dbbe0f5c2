"""The alert webhook: one that is away gets its lines later, once and in order; no address ends the sensor's tick."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ports import free_port

from forge_assets import gate_flips
from forge_assets.gate_flips import UNSENT, WEBHOOK, send


class Webhook:
    """A server that answers with `status` and remembers what it took."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.status = 200
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if webhook.status == 200:
                    webhook.received.append(body)
                self.send_response(webhook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/secret"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    thread = threading.Thread(target=webhook.server.serve_forever)
    thread.start()
    yield webhook
    webhook.server.shutdown()
    thread.join()
    webhook.server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    return tmp_path


def test_lines_wait_for_a_webhook_that_is_away(home: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{free_port()}/secret")
    problem = send(["1", "2"])
    assert problem is not None
    assert "Connection refused" in problem
    assert problem.endswith(f"2 wait in {UNSENT} for the next tick")
    assert "secret" not in problem
    monkeypatch.setenv(WEBHOOK, webhook.address)
    webhook.status = 503
    assert str(send(["3"])).endswith(f"3 wait in {UNSENT} for the next tick")
    webhook.status = 200
    assert send(["4"]) is None
    assert webhook.received == ["1", "2", "3", "4"]
    assert send([]) is None
    assert webhook.received == ["1", "2", "3", "4"]
    assert list(home.iterdir()) == []


def test_line_that_is_refused_does_not_hold_up_others(
    home: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEBHOOK, webhook.address)
    webhook.status = 400
    problem = send(["1"])
    assert problem is not None
    assert "HTTP Error 400" in problem
    webhook.status = 200
    assert send(["2"]) is None
    assert webhook.received == ["2"]


def test_waiting_lines_are_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_flips, "_KEPT", 3)
    monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{free_port()}/")
    send([str(n) for n in range(10)])
    assert (home / UNSENT).read_text().split() == ["7", "8", "9"]


@pytest.mark.parametrize(
    "address",
    [
        "http://[::1/secret",
        "http://host:port/secret",
        "https://exa mple/secret",
        "http://grün\x00/secret",
        "ftp://secret",
    ],
)
def test_malformed_address_is_a_line_in_the_tick(home: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_flips.os, "environ", {**gate_flips.os.environ, WEBHOOK: address})
    problem = send(["1"])
    assert problem is not None
    assert "secret" not in problem
    assert WEBHOOK in problem
