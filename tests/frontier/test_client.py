"""The client against a server that misbehaves: what is asked again, what is paid, what is said, and what is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_resources.frontier import Answer, ChatRequest, FrontierClient, FrontierConfig
from forge_resources.frontier.cache import AnswerCache
from forge_resources.frontier.client import retry_after_s
from forge_resources.frontier.errors import (
    CostCapError,
    FrontierError,
    KeyRefusedError,
    MalformedReplyError,
    ModelUnavailableError,
    NoCreditError,
    ServerUnavailableError,
    StorageError,
    UncertainRequestError,
)
from tests.frontier.chat_server import Reply, Server, completion, failure

Configure = Callable[..., FrontierConfig]
Ask = Callable[..., ChatRequest]


def use(config: FrontierConfig, folder: Path, work: Callable[[FrontierClient], Awaitable[object]]) -> object:
    async def run() -> object:
        async with FrontierClient(config, folder) as client:
            return await work(client)

    return asyncio.run(run())


async def each(client: FrontierClient, requests: list[ChatRequest]) -> list[Answer | FrontierError]:
    async def one(request: ChatRequest) -> Answer | FrontierError:
        try:
            return await client.ask(request)
        except FrontierError as error:
            return error

    return list(await asyncio.gather(*(one(request) for request in requests)))


def worst(request: ChatRequest) -> float:
    return request.worst_cost_usd((1.0, 10.0))


def test_an_answer_is_paid_once_and_for_ever(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: completion("4")) as server:
        settings = config(server.url)

        async def work(client: FrontierClient) -> None:
            twice = await asyncio.gather(client.ask(request_of()), client.ask(request_of()))
            assert [(a.text, a.cost_usd, a.cost_source, a.cached) for a in twice] == [
                ("4", 0.001, "reported", False)
            ] * 2
            assert (await client.ask(request_of())).cached
            assert (await client.ask(request_of(seed=1))).cached is False
            assert (client.spend().spent_usd, client.spend().answers) == (0.002, 2)

        use(settings, tmp_path, work)
        again = use(settings, tmp_path, lambda client: client.ask(request_of()))
        assert isinstance(again, Answer)
        assert again.cached
        assert len(server.requests) == 2
        sent = server.requests[0]
        assert sent["model"] == "lab/one"
        assert sent["messages"] == [{"role": "user", "content": "2 + 2?"}]
        assert (sent["max_tokens"], sent["temperature"], sent["seed"]) == (100, 0.0, 0)
        assert sent["provider"] == {"max_price": {"prompt": 1.0, "completion": 10.0}}


def test_cost_is_reported_or_priced_or_assumed(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    counted = {"prompt_tokens": 100, "completion_tokens": 50}
    own_key = counted | {"cost": 0.0001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.0004}}
    wrong = [{"cost": -1.0}, {"cost": "0"}, {"cost": True}, {"prompt_tokens": 1}, "much", 7]
    usages = [counted | {"cost": 0.0002}, counted, own_key, None, *wrong]
    with Server(lambda request, times: completion("x", usage=usages[request["seed"]])) as server:
        requests = [request_of(seed=seed) for seed in range(len(usages))]
        answers = use(config(server.url), tmp_path, lambda client: each(client, requests))
    assert isinstance(answers, list)
    found = [(answer.cost_source, pytest.approx(answer.cost_usd)) for answer in answers]
    priced = (100 * 1.0 + 50 * 10.0) / 1e6
    assert found[:3] == [("reported", 0.0002), ("priced", priced), ("reported", 0.0005)]
    assert found[3:] == [("assumed", worst(request)) for request in requests[3:]]


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_not_a_number_is_no_cost(tmp_path: Path, config: Configure, request_of: Ask, number: bytes) -> None:
    body = completion("4").body.replace(b"0.001", number)
    with Server(lambda request, times: Reply(body=body, produced=True)) as server:
        (found,) = use(config(server.url), tmp_path, lambda client: each(client, [request_of()]))  # type: ignore[misc]
        assert (found.text, found.cost_source, found.cost_usd) == ("4", "assumed", worst(request_of()))


def test_storms_are_sat_out_and_cost_nothing(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    storm = [failure(500), failure(503), failure(429)]
    with Server(lambda request, times: storm[times] if times < 3 else completion("4")) as server:

        async def work(client: FrontierClient) -> None:
            assert (await client.ask(request_of())).text == "4"
            assert (client.retries, client.spend().spent_usd, client.spend().lost) == (3, 0.001, 0)

        use(config(server.url, backoff_s=0.05), tmp_path, work)
        gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
        for gap, base in zip(gaps, (0.05, 0.1, 0.2), strict=True):  # doubling, with a jitter of one half
            assert base / 2 <= gap


def test_a_storm_that_does_not_end(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: failure(500, "overloaded")) as server:
        (error,) = use(config(server.url), tmp_path, lambda c: each(c, [request_of()]))  # type: ignore[misc]
        assert isinstance(error, ServerUnavailableError)
        assert "given up after 4 attempts, the last one: status 500: overloaded; nothing was paid" in str(error)
        assert len(server.requests) == 4
        server.answer = lambda request, times: completion("4")
        assert use(config(server.url), tmp_path, lambda c: c.ask(request_of())).text == "4"  # type: ignore[attr-defined]


def test_retry_after_is_kept_in_seconds_and_as_a_date(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    def answer(request: dict[str, object], times: int) -> Reply:
        if times:
            return completion("4")
        if request["model"] == "lab/one":
            return failure(429, Retry_After="0.6")
        date = datetime.now(UTC) + timedelta(seconds=2)
        return failure(503, Retry_After=format_datetime(date, usegmt=True))

    with Server(answer) as server:
        start = time.monotonic()
        requests = [request_of(), request_of(model="lab/two"), request_of(model="lab/three")]

        async def work(client: FrontierClient) -> None:
            first = asyncio.create_task(client.ask(requests[0]))
            second = asyncio.create_task(client.ask(requests[1]))
            await first
            assert time.monotonic() - start >= 0.6
            await second
            assert time.monotonic() - start > 0.99  # a date has whole seconds: 2 s from now is at least 1 s

        use(config(server.url), tmp_path, work)
        assert len(server.requests) == 4


def test_retry_after_holds_back_other_requests_to_the_model(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: completion("4") if times else failure(429, Retry_After="0.5")) as server:
        requests = [request_of(seed=seed) for seed in range(4)]
        use(config(server.url, max_concurrency=1), tmp_path, lambda client: each(client, requests))
        # The first is refused and the model left alone for half a second, for every request and every refusal.
        gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
        assert gaps[0] >= 0.49
        assert len(server.requests) == 8


def test_a_server_that_wants_too_long_a_wait_is_left(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: failure(429, "later", Retry_After="86400")) as server:
        start = time.monotonic()
        (error,) = use(config(server.url, max_wait_s=1.0), tmp_path, lambda c: each(c, [request_of()]))  # type: ignore[misc]
        assert isinstance(error, ServerUnavailableError)
        assert "asks to wait 86400 s" in str(error)
        assert time.monotonic() - start < 5
        assert len(server.requests) == 1


@given(st.text(max_size=40))
def test_any_retry_after_is_a_wait_or_nothing(header: str) -> None:
    wait = retry_after_s(header)
    assert wait is None or wait >= 0


def test_retry_after_spellings() -> None:
    assert [retry_after_s(h) for h in ("7", " 1.5 ", "", "soon", "-3", "Wed, 21 Oct 2015 07:28:00 GMT")] == [
        7.0,
        1.5,
        None,
        None,
        None,
        0.0,
    ]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(body=b"{not json", produced=True), "not a chat completion"),
        (Reply(body=b"[" * 5000, produced=True), "not a chat completion"),
        (Reply(body=b"", produced=True), "not a chat completion"),
        (Reply(body=b'{"choices": {"0": 1}}', produced=True), "not a chat completion"),
        (Reply(body=b'{"choices": [{"text": "old protocol"}]}', produced=True), "not a chat completion"),
        (Reply(body=b'"\\ud800"', produced=True), "not a chat completion"),
        (Reply(body=b"<html>welcome</html>", produced=True), "not a chat completion"),
        (completion("x", choices=[]), "no choices"),
        (completion("x", choices=None), "no choices"),
        (completion(None), "empty"),
        (completion("  \n"), "empty"),
        (completion(None, message={"refusal": "I can't help with that"}), "refused: I can't help with that"),
        (completion("", choice={"finish_reason": "content_filter"}), "content filter"),
        (completion("half an ans", choice={"finish_reason": "length"}), "cut off at max_tokens"),
        (completion("x", choice={"finish_reason": "error", "error": {"message": "gone"}}), "the server failed: gone"),
        (completion("x", choices=[], error={"code": 502, "message": "upstream"}), "the server failed: upstream"),
        (completion("x" * 200_000), "longer than max_tokens allow"),
    ],
)
def test_malformed_replies_are_rejected_and_not_paid_again(
    tmp_path: Path, config: Configure, request_of: Ask, reply: Reply, says: str
) -> None:
    with Server(lambda request, times: reply) as server:
        for _ in range(2):
            (error,) = use(config(server.url), tmp_path, lambda c: each(c, [request_of()]))  # type: ignore[misc]
            assert isinstance(error, MalformedReplyError)
            assert says in str(error)
        assert sum(server.produced.values()) == 1
    with AnswerCache(tmp_path, 1.0) as cache:
        expected = 0.001 if b'"cost"' in reply.body else worst(request_of())
        assert cache.spend().spent_usd == pytest.approx(expected)


@pytest.mark.parametrize(("code", "kind"), [(429, None), (503, None), (401, KeyRefusedError), (402, NoCreditError)])
def test_an_error_inside_a_reply_of_status_200_counts(
    tmp_path: Path, config: Configure, request_of: Ask, code: int, kind: type[FrontierError] | None
) -> None:
    inside = Reply(200, failure(code, "inside").body)
    with Server(lambda request, times: completion("4") if times else inside) as server:
        (found,) = use(config(server.url), tmp_path, lambda c: each(c, [request_of()]))  # type: ignore[misc]
        if kind is None:
            assert isinstance(found, Answer)
        else:
            assert type(found) is kind
            assert "inside" in str(found)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(delay_s=30.0, produced=True), "no whole answer within timeout_s = 0.4"),
        (Reply(body=b" " * 200, drip_s=0.05, produced=True), "no whole answer within timeout_s = 0.4"),
        (Reply(body=completion("4").body, cut_after=20, produced=True), "the connection broke"),
        (Reply(body=completion("4").body, cut_after=0, produced=True), "the connection broke"),
        (Reply(headers={"content-length": "nonsense"}, produced=True), "the connection broke"),
        (Reply(body=b" " * (5 << 20), produced=True), "longer than"),
    ],
    ids=["hangs", "drips", "cut", "no body", "no HTTP", "flood"],
)
def test_a_lost_answer_is_counted_and_not_asked_for_again(
    tmp_path: Path, config: Configure, request_of: Ask, reply: Reply, says: str
) -> None:
    with Server(lambda request, times: reply) as server:
        settings = config(server.url, timeout_s=0.4)
        start = time.monotonic()
        (error,) = use(settings, tmp_path, lambda c: each(c, [request_of()]))  # type: ignore[misc]
        assert isinstance(error, UncertainRequestError)
        assert says in str(error)
        assert time.monotonic() - start < 5

        async def again(client: FrontierClient) -> None:
            with pytest.raises(UncertainRequestError, match="may have been paid for; it is not sent again"):
                await client.ask(request_of())
            spend = client.spend()
            assert (spend.lost, spend.uncertain_usd, spend.spent_usd) == (1, worst(request_of()), 0.0)
            assert "up to $0.001" in spend.describe()
            assert "1 requests whose answers never came" in spend.describe()

        use(settings, tmp_path, again)
        assert sum(server.produced.values()) <= 1  # 0: a busy machine had not read the request before the time was up
        server.answer = lambda request, times: completion("4")
        allowed = config(server.url, ask_again_uncertain=True)
        assert use(allowed, tmp_path, lambda c: c.ask(request_of())).text == "4"  # type: ignore[attr-defined]


def test_no_server_is_no_cost(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: completion("4")) as server:
        url = server.url
    (error,) = use(config(url, max_retries=1), tmp_path, lambda c: each(c, [request_of()]))  # type: ignore[misc]
    assert isinstance(error, ServerUnavailableError)
    assert f"no connection to {url}" in str(error)
    with AnswerCache(tmp_path, 1.0) as cache:
        assert cache.spend().uncertain_usd == 0


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, KeyRefusedError, "the server does not accept the key in OPENROUTER_API_KEY"),
        (402, NoCreditError, "no credit left"),
    ],
)
def test_a_wrong_key_and_no_credit_stop_everything(
    tmp_path: Path, config: Configure, request_of: Ask, status: int, kind: type[FrontierError], says: str
) -> None:
    with Server(lambda request, times: completion("4") if request["seed"] == 0 else failure(status)) as server:

        async def work(client: FrontierClient) -> None:
            assert (await client.ask(request_of())).text == "4"
            found = await each(client, [request_of(seed=seed) for seed in range(8)])
            assert isinstance(found[0], Answer)  # what was earned is still given
            assert {type(error) for error in found[1:]} == {kind}
            assert says in str(found[1])

        use(config(server.url, max_concurrency=1), tmp_path, work)
        assert len(server.requests) == 2


def test_no_credit_for_a_moment_is_waited_for(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: completion("4") if times else failure(402, Retry_After="0.1")) as server:
        assert use(config(server.url), tmp_path, lambda c: c.ask(request_of())).text == "4"  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [400, 404])
def test_a_model_that_is_gone_is_named(tmp_path: Path, config: Configure, request_of: Ask, status: int) -> None:
    gone = failure(status, "lab/one is not a valid model ID")
    with Server(lambda request, times: gone if request["model"] == "lab/one" else completion("4")) as server:
        found = use(config(server.url), tmp_path, lambda c: each(c, [request_of(), request_of(model="lab/two")]))
        assert isinstance(found, list)
        assert isinstance(found[0], ModelUnavailableError)
        assert "lab/one is not a valid model ID" in str(found[0])
        assert isinstance(found[1], Answer)


def test_requests_in_flight_are_bounded(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: completion("4", delay_s=0.05)) as server:
        requests = [request_of(seed=seed) for seed in range(15)]
        use(config(server.url, max_concurrency=3), tmp_path, lambda client: each(client, requests))
        assert server.most == 3
        assert len(server.requests) == 15


def test_the_cap_holds_with_many_requests_at_once(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    """Each answer costs the most possible: exactly as many as fit are sent, although all were asked for at once."""
    requests = [request_of(seed=seed) for seed in range(10)]
    cap = 4.5 * worst(requests[0])
    usage = {"cost": worst(requests[0])}
    with Server(lambda request, times: completion("4", usage=usage, delay_s=0.05)) as server:

        async def work(client: FrontierClient) -> None:
            found = await each(client, requests)
            assert [type(f) for f in found].count(Answer) == 4
            errors = [f for f in found if isinstance(f, CostCapError)]
            assert len(errors) == 6
            assert "what was earned is kept; raise max_cost_usd" in str(errors[0])
            assert client.spend().spent_usd <= cap

        use(config(server.url, max_cost_usd=cap, max_concurrency=10), tmp_path, work)
        assert sum(server.produced.values()) == 4
        # The cap is on the folder, over all runs; a higher one goes on and pays for nothing twice.
        use(config(server.url, max_cost_usd=cap), tmp_path, lambda client: each(client, requests))
        assert sum(server.produced.values()) == 4
        use(config(server.url, max_cost_usd=3 * cap), tmp_path, lambda client: each(client, requests))
        assert sum(server.produced.values()) == 10
        assert max(server.produced.values()) == 1


def test_the_most_a_request_can_cost_bounds_its_bytes(request_of: Ask) -> None:
    """A token has at least one byte: a thousand four-byte characters are at most four thousand tokens."""
    request = request_of(prompt="\N{SNOWMAN}\N{GRINNING FACE}" * 1000)
    assert request.worst_cost_usd((1.0, 0.0)) * 1e6 >= 7000
    assert request.worst_cost_usd((0.0, 10.0)) == pytest.approx(100 * 10.0 / 1e6)


def test_what_may_be_lost_counts_against_the_cap(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: Reply(delay_s=30.0, produced=True)) as server:
        settings = config(server.url, timeout_s=0.2, max_cost_usd=2.5 * worst(request_of()), max_concurrency=1)
        found = use(settings, tmp_path, lambda client: each(client, [request_of(seed=seed) for seed in range(4)]))
        assert isinstance(found, list)
        assert [type(f) for f in found] == [UncertainRequestError] * 2 + [CostCapError] * 2
        assert len(server.requests) <= 2


def test_redirections_are_not_followed(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    moved = Reply(status=307, headers={"location": "/api/v1/chat/completions"})
    with Server(lambda request, times: moved) as server:
        (error,) = use(config(server.url), tmp_path, lambda c: each(c, [request_of()]))  # type: ignore[misc]
        assert isinstance(error, FrontierError)
        assert "the server refused the request (status 307" in str(error)
        assert len(server.requests) == 1


def test_cheap_answers_make_room_below_the_cap(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    """Reservations in flight only make others wait: ten answers at a tenth of their worst cost fit below two."""
    requests = [request_of(seed=seed) for seed in range(10)]
    usage = {"cost": worst(requests[0]) / 10}
    with Server(lambda request, times: completion("4", usage=usage, delay_s=0.01)) as server:
        cap = 2.0 * worst(requests[0])
        found = use(config(server.url, max_cost_usd=cap), tmp_path, lambda client: each(client, requests))
        assert isinstance(found, list)
        assert [type(f) for f in found] == [Answer] * 10
        assert server.most <= 2


def test_a_server_that_charges_more_than_its_prices_is_noticed(
    tmp_path: Path, config: Configure, request_of: Ask
) -> None:
    with Server(lambda request, times: completion("4", usage={"cost": 0.5})) as server:

        async def work(client: FrontierClient) -> None:
            assert (await client.ask(request_of())).cost_usd == 0.5
            with pytest.raises(CostCapError, match="correct usd_per_million_tokens"):
                await client.ask(request_of(seed=1))

        use(config(server.url), tmp_path, work)
        assert len(server.requests) == 1


def test_a_model_without_a_price_is_not_asked(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: completion("4")) as server:
        (error,) = use(config(server.url), tmp_path, lambda c: each(c, [request_of(model="lab/new")]))  # type: ignore[misc]
        assert isinstance(error, ModelUnavailableError)
        assert "lab/new has no price in usd_per_million_tokens" in str(error)
        assert not server.requests


def test_what_is_cancelled_counts_as_lost(tmp_path: Path, config: Configure, request_of: Ask) -> None:
    with Server(lambda request, times: completion("4", delay_s=5.0)) as server:

        async def work(client: FrontierClient) -> None:
            asking = asyncio.create_task(client.ask(request_of()))
            while not server.requests:
                await asyncio.sleep(0.01)
            asking.cancel()

        use(config(server.url), tmp_path, work)
    with AnswerCache(tmp_path, 1.0) as cache:
        assert (cache.spend().lost, cache.spend().uncertain_usd) == (1, worst(request_of()))


def test_two_runs_do_not_share_a_folder(tmp_path: Path, config: Configure) -> None:
    async def work(client: FrontierClient) -> None:
        with pytest.raises(StorageError, match="in use by another run"):
            FrontierClient(client.config, tmp_path)

    use(config("http://127.0.0.1:9/v1"), tmp_path, work)
