"""A local chat-completions server that behaves or misbehaves as a test requires.

It counts what a real server would charge for: every completion that it produced, received by the client or not.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

Request = dict[str, Any]


@dataclass
class Reply:
    """A response of the server. `produced`: it holds a completion, which would be charged for."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    produced: bool = False
    cut_after: int = -1  # reset the connection after this many bytes of the body; -1: never
    drip_s: float = 0.0  # pause between single bytes of the body


def completion(text: str | None, usage: object = "cost", **changes: Any) -> Reply:
    """Return a completion that costs 0.001 USD; `changes` replaces fields of the response."""
    message = {"role": "assistant", "content": text} | changes.pop("message", {})
    choice = {"index": 0, "finish_reason": "stop", "message": message} | changes.pop("choice", {})
    body: dict[str, Any] = {"id": "gen-1", "object": "chat.completion", "model": "served", "choices": [choice]}
    if usage == "cost":
        usage = {"prompt_tokens": 100, "completion_tokens": 50, "cost": 0.001}
    if usage is not None:
        body["usage"] = usage
    delay_s = changes.pop("delay_s", 0.0)
    return Reply(body=json.dumps(body | changes).encode(), produced=True, delay_s=delay_s)


def failure(status: int, message: str = "no", **headers: str) -> Reply:
    """Return an error in OpenRouter's format; underscores in header names stand for hyphens."""
    body = json.dumps({"error": {"code": status, "message": message}}).encode()
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


class Server:
    """Serves `answer(request, number of earlier identical requests)` on a local port, in a thread."""

    def __init__(self, answer: Callable[[Request, int], Reply]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.produced: Counter[str] = Counter()  # by the request's body
        self.seen: Counter[str] = Counter()
        self.now = 0
        self.most = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        assert head[0].startswith("POST /api/v1/chat/completions "), head[0]
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._reply(writer, json.loads(body), headers)
        finally:
            self.now -= 1

    async def _reply(self, writer: asyncio.StreamWriter, request: Request, headers: dict[str, str]) -> bool:
        name = json.dumps(request, sort_keys=True)
        self.requests.append(request)
        self.headers.append(headers)
        self.times.append(asyncio.get_running_loop().time())
        reply = self.answer(request, self.seen[name])
        self.seen[name] += 1
        self.produced[name] += reply.produced
        await asyncio.sleep(reply.delay_s)
        fields = {"content-type": "application/json", "content-length": str(len(reply.body))} | reply.headers
        lines = [f"HTTP/1.1 {reply.status} Said", *(f"{k}: {v}" for k, v in fields.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if reply.drip_s:
            for byte in reply.body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(reply.drip_s)
        else:
            writer.write(reply.body if reply.cut_after < 0 else reply.body[: reply.cut_after])
        await writer.drain()
        return reply.cut_after < 0
