"""Client of frontier models that never pays twice for the same answer and never spends more than the cap.

Before a request is sent, its maximum cost is reserved: the bytes of its prompt and its `max_tokens` at the table's
prices, which OpenRouter is also told not to exceed. The sum of what was spent, what is reserved and what may have been
spent on lost requests never exceeds the cap, however many requests are in flight. A server that charges more than its
prices is detected at the first such answer, and nothing more is sent.

The cost of an attempt depends on how it ended:

* status 4xx or 5xx, or no connection: nothing (OpenRouter charges for completions only). The request is retried where
  that can help (408, 409, 425, 429, 5xx, and 402 with `Retry-After`).
* an answer: the cost reported by the server, else tokens times prices, else the maximum.
* sent, but no complete reply (timeout, reset, cancelled, killed): unknown. The maximum counts against the cap, and the
  request is not repeated unless so configured; a request with another seed can take its place.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from forge_resources.frontier.cache import AnswerCache, Spend
from forge_resources.frontier.config import FrontierConfig
from forge_resources.frontier.errors import (
    CostCapError,
    FrontierError,
    FrontierStopError,
    KeyRefusedError,
    MalformedReplyError,
    ModelUnavailableError,
    NoCreditError,
    ServerUnavailableError,
    StorageError,
    UncertainRequestError,
)
from forge_resources.frontier.protocol import Answer, ChatRequest, ServerError, error_message, read_reply
from forge_resources.frontier.secret import filter_logs, read_key, scrub, unfilter_logs

MAX_REPLY_BYTES = 4 << 20
_CONNECT_S = 20.0
_AGAIN = {408, 409, 425, 429}


@dataclass(frozen=True, slots=True)
class _Reply:
    """A complete HTTP reply."""

    status: int
    retry_after: str
    body: str


@dataclass(frozen=True, slots=True)
class _Retry:
    """An attempt that was not charged and may be repeated after at least `wait_s`."""

    reason: str
    wait_s: float = 0.0


class _NotSentError(Exception):
    """Raised when there was no connection, so the server never received the request."""


class _LostError(Exception):
    """Raised when the server may have received the request but no complete reply arrived."""


class FrontierClient:
    """Client of frontier models with a cache in `folder`. Use it as an asynchronous context manager.

    Raises:
        KeyRefusedError: when there is no key.
        StorageError: when the folder cannot be used.
        ModuleNotFoundError: when the client library is not installed.
    """

    def __init__(self, config: FrontierConfig, folder: Path) -> None:
        try:
            import openai

            from forge_resources.frontier.transport import KeyedTransport
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"frontier models need the package openai ({error}): pip install 'agent-forge[frontier]'"
            ) from error
        self.config = config
        self._key = key = read_key(config.key_variable)
        self._openai = openai.AsyncOpenAI(
            api_key="added-by-the-transport",
            base_url=config.base_url,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                transport=KeyedTransport(key, config.base_url, config.max_concurrency, MAX_REPLY_BYTES),
                timeout=openai.Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s)),
                follow_redirects=False,
            ),
        )
        self._cache = AnswerCache(folder, config.max_cost_usd)
        self._filter = filter_logs(key)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._in_flight: dict[str, asyncio.Task[Answer]] = {}
        self._resume_at: defaultdict[str, float] = defaultdict(float)
        self._settled = asyncio.Event()
        self._stop: FrontierStopError | None = None
        self.retries = 0

    async def ask(self, request: ChatRequest) -> Answer:
        """Return the model's answer, from the cache if it was paid for before, else from the server.

        A new answer is on disk before it is returned. Concurrent identical requests are sent once.

        Raises:
            MalformedReplyError: when the reply is unusable (not in the protocol, refused, cut off, empty).
            ServerUnavailableError, ModelUnavailableError, UncertainRequestError: see there.
            FrontierStopError: when no further request can be sent.
        """
        answer = self._cache.read(request)
        if answer is None:
            digest = request.digest()
            task = self._in_flight.get(digest)
            if task is None:
                task = asyncio.create_task(self._pay(request, digest))
                self._in_flight[digest] = task
                task.add_done_callback(lambda done: self._forget(digest, done))
            answer = await asyncio.shield(task)
        if answer.problem:
            raise MalformedReplyError(f"{request.model}: {answer.problem}")
        return answer

    def spend(self) -> Spend:
        """Return the cost of the folder of answers so far, over all runs."""
        return self._cache.spend()

    def scrub(self, text: str) -> str:
        """Return `text` with any occurrence of the key removed."""
        return scrub(text, self._key)

    async def close(self) -> None:
        """Cancel the requests in flight (they count as lost), and close the connections and the folder."""
        left = list(self._in_flight.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._openai.close()
        self._cache.close()
        unfilter_logs(self._filter)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _forget(self, digest: str, done: asyncio.Task[Answer]) -> None:
        del self._in_flight[digest]
        if not done.cancelled():
            done.exception()  # retrieved, so that asyncio does not warn if nobody awaits the task any more

    async def _pay(self, request: ChatRequest, digest: str) -> Answer:
        if self._cache.is_lost(digest) and not self.config.ask_again_uncertain:
            raise UncertainRequestError(
                f"{request.model}: the request was sent before and its answer was lost, so it may have been paid for; "
                "it is not sent again (ask_again_uncertain)"
            )
        waits = random.Random(f"{self.config.seed}/{digest}")
        wait_s, reason = self.config.backoff_s, ""
        for attempt in range(self.config.max_retries + 1):
            result = await self._attempt(request, digest)
            if isinstance(result, Answer):
                return result
            reason = result.reason
            if result.wait_s > self.config.max_wait_s:
                raise ServerUnavailableError(
                    f"{request.model}: the server asks to wait {result.wait_s:.0f} s ({reason}), more than "
                    f"max_wait_s = {self.config.max_wait_s:g}; nothing was paid for this request"
                )
            if attempt < self.config.max_retries:
                self.retries += 1
                jittered = min(wait_s, self.config.max_wait_s) * waits.uniform(0.5, 1.0)
                wait_s *= 2
                await asyncio.sleep(jittered)  # `_turn` waits in addition until the time that the server asked for
        raise ServerUnavailableError(
            f"{request.model}: given up after {self.config.max_retries + 1} attempts, the last one: {reason}; "
            "nothing was paid for this request"
        )

    async def _attempt(self, request: ChatRequest, digest: str) -> Answer | _Retry:
        """Send the request once, and record its cost."""
        async with self._turn(request.model):
            await self._reserve(request)
            try:
                reply = await self._post(request)
                return self._settle(request, digest, reply)
            except _NotSentError as error:
                self._cache.release(digest, str(error))
                return _Retry(str(error))
            except _LostError as error:
                self._cache.lose(digest, str(error))
                if self.config.ask_again_uncertain:
                    return _Retry(str(error))
                raise UncertainRequestError(
                    f"{request.model}: {error}; the request may have been paid for and is not sent again"
                ) from None
            except asyncio.CancelledError:
                self._cache.lose(digest, "cancelled while in flight")
                raise
            except StorageError as error:
                self._stop = error
                raise
            finally:
                self._settled.set()

    @asynccontextmanager
    async def _turn(self, model: str) -> AsyncIterator[None]:
        """Acquire a slot once the server allows requests to this model (`Retry-After`)."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(0.0, self._resume_at[model] - clock()))
            async with self._slots:
                if self._resume_at[model] <= clock():
                    yield
                    return

    async def _reserve(self, request: ChatRequest) -> None:
        """Reserve the maximum cost of the request, waiting until requests in flight leave room below the cap.

        Raises:
            CostCapError: when it does not fit below the cap.
            FrontierStopError: when nothing more may be sent.
        """
        worst = request.worst_cost_usd(self._prices(request))
        while True:
            if self._stop is not None:
                raise self._stop
            spend = self._cache.spend()
            gone = spend.spent_usd + spend.uncertain_usd
            if gone + spend.reserved_usd + worst <= self.config.max_cost_usd:
                break
            if not spend.reserved_usd:
                raise CostCapError(
                    f"the cap of ${self.config.max_cost_usd:g} is reached: ${gone:.6f} may be gone and the next "
                    f"request to {request.model} could cost ${worst:.6f}; what was earned is kept; raise max_cost_usd "
                    "to go on"
                )
            self._settled.clear()
            await self._settled.wait()
        try:
            self._cache.start(request, worst)
        except StorageError as error:
            self._stop = error
            raise

    def _prices(self, request: ChatRequest) -> tuple[float, float]:
        prices = self.config.prices(request.model)
        if prices is None:
            raise ModelUnavailableError(
                f"{request.model} has no price in usd_per_million_tokens: its cost cannot be capped; nothing was sent"
            )
        return prices

    async def _post(self, request: ChatRequest) -> _Reply:
        import httpx2
        import openai

        prices = self._prices(request) if self.config.limit_price else None
        arguments = request.arguments(prices, self.config.structured)
        try:
            async with asyncio.timeout(self.config.timeout_s):
                raw = await self._openai.chat.completions.with_raw_response.create(**arguments)
            response = raw.http_response
        except openai.APIStatusError as error:
            response = error.response
        except openai.APIConnectionError as error:
            cause = error.__cause__
            text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
            unsent = httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError
            if isinstance(cause, unsent | httpx2.UnsupportedProtocol):
                raise _NotSentError(f"no connection to {self.config.base_url} ({text})") from None
            raise _LostError(f"the connection broke before the whole answer was there ({text})") from None
        except TimeoutError:
            raise _LostError(f"no whole answer within timeout_s = {self.config.timeout_s:g}") from None
        return _Reply(response.status_code, response.headers.get("retry-after", ""), response.text)

    def _settle(self, request: ChatRequest, digest: str, reply: _Reply) -> Answer | _Retry:
        """Turn a complete reply into an answer on disk, a retry, or an error."""
        if reply.status // 100 != 2:
            return self._refused(request, digest, ServerError(status=reply.status, message=""), reply)
        prices = self._prices(request)
        read = read_reply(reply.body, request, prices)
        if isinstance(read, ServerError):
            return self._refused(request, digest, read, reply)
        clean = {name: self.scrub(getattr(read, name)) for name in ("text", "problem", "served_by")}
        read = read.model_copy(update=clean)
        self._cache.finish(request, read)
        worst = request.worst_cost_usd(prices)
        if read.cost_usd > worst * (1 + 1e-9):
            self._stop = CostCapError(
                f"{request.model} cost ${read.cost_usd:.6f} where its prices allow at most ${worst:.6f}: the cap "
                "cannot be kept with such prices, so nothing more is sent; correct usd_per_million_tokens"
            )
        return read

    def _refused(self, request: ChatRequest, digest: str, error: ServerError, reply: _Reply) -> _Retry:
        """Handle an error status, for which nothing was charged: return a retry, or raise the error that it means."""
        said = self.scrub(error.message or error_message(reply.body))
        reason = f"status {error.status}: {said}"
        self._cache.release(digest, reason)
        wait_s = retry_after_s(reply.retry_after)
        if error.status in _AGAIN or error.status >= 500 or (error.status == 402 and wait_s is not None):
            if wait_s is not None and wait_s <= self.config.max_wait_s:
                until = asyncio.get_running_loop().time() + wait_s
                self._resume_at[request.model] = max(self._resume_at[request.model], until)
            return _Retry(reason, wait_s or 0.0)
        failed: FrontierError
        if error.status == 401:
            failed = self._stop = KeyRefusedError(
                f"the server does not accept the key in {self.config.key_variable} ({reason}): check that it is whole, "
                "belongs to this server and was not revoked; nothing was paid for"
            )
        elif error.status == 402:
            failed = self._stop = NoCreditError(
                f"the account has no credit left ({reason}): add some and run again; what was earned is kept and will "
                "not be paid for again"
            )
        elif error.status in (400, 404):
            failed = ModelUnavailableError(
                f"the server refuses requests for {request.model} ({reason}): models are withdrawn from time to time; "
                "name another one in models and usd_per_million_tokens"
            )
        else:
            failed = FrontierError(f"{request.model}: the server refused the request ({reason}); nothing was paid for")
        raise failed


def retry_after_s(header: str) -> float | None:
    """Return the seconds of a `Retry-After` header (RFC 9110, section 10.2.3), given as number or date; else None."""
    header = header.strip()
    if header.isascii() and header.replace(".", "", 1).isdigit():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
