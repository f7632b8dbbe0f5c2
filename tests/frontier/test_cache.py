"""Killed, full, damaged: what was paid for is on disk, is not paid for again, and what may be lost is known."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forge_resources.frontier import ChatRequest, FrontierClient
from forge_resources.frontier.cache import AnswerCache
from forge_resources.frontier.errors import StorageError
from forge_resources.frontier.protocol import Answer
from tests.frontier.chat_server import Reply, Request, Server, completion
from tests.frontier.drive_requests import ask_all, requests, settings

Ask = Callable[..., ChatRequest]
ROOT = Path(__file__).parents[2]


def drive(url: str, folder: Path, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).parent / "drive_requests.py"), url, str(folder), str(limit)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def double(request: Request, times: int) -> Reply:
    number = int(request["messages"][0]["content"].split()[2])
    return completion(str(2 * number), delay_s=0.05)


def test_killed_in_the_middle_nothing_is_paid_twice(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    with Server(double) as server:
        process = drive(server.url, folder)
        deadline = time.monotonic() + 60
        while sum(server.produced.values()) < 12:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        paid = sum(server.produced.values())
        assert 12 <= paid < 30
        on_disk = len(list(folder.rglob("*.json")))
        assert paid - 4 <= on_disk <= paid  # at most what was in flight is missing

        texts, spent = asyncio.run(ask_all(server.url, folder))
        lost = [text for text in texts if "may have been paid for" in text]
        assert [t for t in texts if t not in lost] == [str(2 * n) for n, text in enumerate(texts) if text not in lost]
        assert set(server.produced.values()) == {1}  # the server counts: no request was paid for twice
        assert paid - on_disk <= len(lost) <= 4
        answered = 30 - len(lost)
        assert len(list(folder.rglob("*.json"))) == answered
        assert spent.startswith(f"${answered * 0.001:.6f} of $5.00 spent on {answered} answers")
        assert (f"for {len(lost)} requests whose answers never came" in spent) == bool(lost)

        before = len(server.requests)
        again, _ = asyncio.run(ask_all(server.url, folder))
        assert again == texts
        assert len(server.requests) == before


def test_a_disk_without_room_is_noticed_before_anything_is_sent(tmp_path: Path) -> None:
    with Server(double) as server:
        process = drive(server.url, tmp_path / "answers", limit=20_000)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "cannot be written" in out
        assert "nothing more is sent or paid for, and everything earned so far is kept" in out
        assert not server.requests
        texts, _ = asyncio.run(ask_all(server.url, tmp_path / "answers"))
        assert texts == [str(2 * n) for n in range(30)]


def test_room_for_the_answer_is_on_disk_while_it_is_on_its_way(tmp_path: Path, request_of: Ask) -> None:
    rooms: list[tuple[int, int]] = []

    def look(request: Request, times: int) -> Reply:
        (room,) = tmp_path.rglob("*.room")
        rooms.append((room.stat().st_size, room.stat().st_blocks * 512))
        assert [json.loads(line)["event"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()] == [
            "started"
        ]
        return completion("4")

    async def run(url: str) -> None:
        async with FrontierClient(settings(url), tmp_path) as client:
            await client.ask(request_of(model="m"))

    with Server(look) as server:
        asyncio.run(run(server.url))
    size = request_of(model="m").room_bytes()
    assert rooms[0][0] == size
    assert rooms[0][1] >= size
    assert not list(tmp_path.rglob("*.room"))


def test_an_answer_that_cannot_be_written_is_not_used(tmp_path: Path) -> None:
    def vanish(request: Request, times: int) -> Reply:
        shutil.rmtree(tmp_path / "answers")
        return completion("4", delay_s=0.05)

    async def run(url: str) -> None:
        async with FrontierClient(settings(url), tmp_path) as client:
            with pytest.raises(StorageError, match="paid for cannot be written"):
                await client.ask(requests()[0])
            with pytest.raises(StorageError):
                await client.ask(requests()[1])

    with Server(vanish) as server:
        asyncio.run(run(server.url))
        assert len(server.requests) == 1
    with AnswerCache(tmp_path, 1.0) as cache:
        assert (cache.spend().lost, cache.spend().answers) == (1, 0)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(StorageError, match="cannot be written"):
        AnswerCache(tmp_path / "file", 1.0)


def an_answer(request: ChatRequest) -> Answer:
    return Answer(
        digest=request.digest(), model=request.model, text="4", problem="", cost_usd=0.25, cost_source="reported"
    )


def test_the_answer_is_on_disk_before_the_ledger_says_so(tmp_path: Path, request_of: Ask) -> None:
    """A kill between the two: the cost is taken from the answer, and counted once."""
    request = request_of()
    with AnswerCache(tmp_path, 1.0) as cache:
        cache.start(request, 0.5)
        cache.finish(request, an_answer(request))
    ledger = tmp_path / "ledger.jsonl"
    started, answered = ledger.read_bytes().splitlines(keepends=True)
    for torn in (started, started + answered[:20], started + answered):
        ledger.write_bytes(torn)
        for _ in range(2):
            with AnswerCache(tmp_path, 1.0) as cache:
                spend = cache.spend()
                assert (spend.spent_usd, spend.uncertain_usd, spend.answers) == (0.25, 0.0, 1)
                assert cache.read(request) == an_answer(request).model_copy(update={"cached": True})
        assert [json.loads(line)["event"] for line in ledger.read_text().splitlines()] == ["started", "answered"]
    ledger.unlink()  # the answers themselves still say what they cost
    with AnswerCache(tmp_path, 1.0) as cache:
        assert cache.spend().spent_usd == 0.25


def test_a_damaged_ledger_or_answer_is_not_passed_over(tmp_path: Path, request_of: Ask) -> None:
    request = request_of()
    with AnswerCache(tmp_path, 1.0) as cache:
        cache.start(request, 0.5)
        cache.finish(request, an_answer(request))
    ledger = tmp_path / "ledger.jsonl"
    sound = ledger.read_bytes()
    for damage in (b'{"event": "answered"}\n', b"\0\0\n", sound.replace(b"0.25", b"-0.25")):
        ledger.write_bytes(damage + sound)
        with pytest.raises(StorageError, match="line [12] is damaged"):
            AnswerCache(tmp_path, 1.0)
    ledger.write_bytes(sound)
    (path,) = tmp_path.rglob("*.json")
    content = path.read_text()
    for damage_text in (content.replace('"4"', '"5"'), content[:-9], "[]", content.replace("2 + 2?", "3 + 3?")):
        path.write_text(damage_text)
        with pytest.raises(StorageError, match="it was paid for; restore it, or remove it to ask and pay again"):
            AnswerCache(tmp_path, 1.0)


def test_every_field_of_a_request_is_in_its_digest(request_of: Ask) -> None:
    one = request_of()
    changes = {
        "model": "x", "system": "x", "prompt": "x", "max_tokens": 7, "temperature": 1.0, "seed": 9, "schema_name": "x",
        "json_schema": "{}",
    }  # fmt: skip
    assert changes.keys() == ChatRequest.model_fields.keys()
    digests = {one.model_copy(update={name: value}).digest() for name, value in changes.items()}
    assert len(digests | {one.digest()}) == len(changes) + 1
