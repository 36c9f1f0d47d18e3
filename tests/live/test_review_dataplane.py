"""Faults of the data plane found by reading it with a hostile eye: each was seen failing once."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace
from typing import Any

import orjson
import pytest

from auth.principal import Budget, Limits
from backends.base import Call, Sink
from backends.errors import ConnectFailed
from gateway.routing.health import HealthBoard
from gateway.routing.policies import Shadow
from gateway.routing.retries import RetryBudget
from gateway.routing.table import BackendSpec, Prices, Timeouts
from gateway.runtime import InFlight
from tests.faults.client import Client
from tests.faults.scripts import WORD, answers, closed, frame, in_turn, raw, silence, stream
from tests.live.test_failover import BROKEN, CHAT, FINE, Place, answers_stream, in_order, place
from tests.relay_server import target
from tests.upstream import Script, Seen, Wire, chat_answer

FREE = Prices(0, 0)
SPEECH = {"model": "m", "input": "hi", "voice": "x"}


async def head_and_body(at: Place, body: Any, path: str = "/v1/chat/completions", version: str = "1.1") -> Client:
    client = await Client.connect(at.server.port)
    at._stack.callback(client.close)
    data = orjson.dumps(body)
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {at.server.key}\r\ncontent-length: {len(data)}\r\n\r\n"
    client.send(head.encode() + data)
    return client


# failover


async def test_an_error_event_without_its_blank_line_fails_over_once() -> None:
    """The end of the failed answer was read as the end of the answer of the target tried next."""
    async with place() as at:
        torn = stream(b'data: {"error": {"message": "no"}}')
        await at.serve(in_order(await at.target("a", torn), await at.target("b", answers_stream())))
        answer = await at.chat(stream=True)
        assert (answer.status_code, at.asked("b")) == (200, 1)
        (record,) = await at.server.ledger.wait(1)
        assert (record.backend, record.attempts, record.ending) == ("b", 2, "success")


async def test_an_answer_larger_than_we_take_is_not_bought_twice_and_is_nobodys_fault() -> None:
    """Our own limit: five clients who ask for much must not take the backend from all others."""
    async with place() as at:
        large = answers(chat_answer(text="x" * 300_000))
        await at.serve(in_order(await at.target("a", large), await at.target("b", FINE)), max_answer_bytes=200_000)
        for _ in range(6):
            assert (await at.chat()).status_code == 502
        assert (at.asked("a"), at.asked("b"), at.board.troubled) == (6, 0, 0)


async def test_an_answer_that_no_memory_is_left_for_is_not_bought_twice() -> None:
    async with place() as at:
        large = answers(chat_answer(text="x" * 1_500_000))
        await at.serve(in_order(await at.target("a", large), await at.target("b", FINE)), max_held_bytes=1_200_000)
        assert (await at.chat()).status_code == 503
        assert (at.asked("a"), at.asked("b"), at.server.relay.held_bytes) == (1, 0, 0)


async def test_a_429_is_tried_elsewhere_once() -> None:
    async with place() as at:
        full = {"error": {"message": "slow down", "type": "rate_limit_exceeded", "param": None, "code": "rate_limit_exceeded"}}
        busy = answers(full, 429)
        targets = [await at.target(name, busy) for name in "abc"]
        await at.serve(in_order(*targets, max_attempts=3))
        answer = await at.chat()
        assert (answer.status_code, answer.json()) == (429, full)
        assert [at.asked(name) for name in "abc"] == [1, 1, 0]


async def test_a_stale_connection_of_the_second_target_is_forgiven_too() -> None:
    async with place() as at:
        a, b = await at.target("a", once_per_connection(BROKEN)), await at.target("b", once_per_connection(FINE))
        await at.serve(in_order(a, b), in_order(a, id="wa"), in_order(b, id="wb"))
        assert (await at.chat(model="wa")).status_code == (await at.chat(model="wb")).status_code == 200
        assert (await at.chat()).status_code == 200  # a: stale, then 500; b: stale, then fine


def once_per_connection(then: Script) -> Script:
    """The first connection is closed as its second request arrives; `then` serves the connections after it."""

    async def script(wire: Wire, seen: Seen) -> None:
        if seen.connection > 1:
            await then(wire, seen)
        elif "used" in used:
            wire.reset()
        else:
            used.add("used")
            await wire.answer(chat_answer())

    used: set[str] = set()
    return script


async def test_a_fallback_that_does_not_offer_the_operation_is_passed_over() -> None:
    """The answer was 404: the model that the client never named does not have it."""
    async with place() as at:
        local = replace(target(Refuses(), id="local-1"), type="local")
        await at.serve(in_order(await at.target("a", BROKEN), id="m", fallback="n"), in_order(local, id="n"))
        answer = await at.http.post("/v1/responses", json={"model": "m", "input": "hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")


async def test_what_is_sent_to_a_fallback_is_bounded_by_what_was_reserved() -> None:
    """The output limit that makes a reservation true was that of the first model, or none where the first one has no price."""
    async with place() as at:
        dear = in_order(await at.target("b", FINE), id="n", prices=Prices(1, 10), max_output_tokens=50)
        for first in (
            in_order(await at.target("a", BROKEN), fallback="n"),
            in_order(await at.target("a", BROKEN), fallback="n", prices=FREE, parameters={"max_tokens": 7}),
            in_order(await at.target("a", BROKEN), fallback="n", prices=Prices(1, 1), max_output_tokens=4000),
        ):
            await at.serve(first, dear)
            key = at.server.keys.issue(Limits(budget=Budget(10**9)))
            answer = await at.http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
            assert at.ups["b"].seen[-1].json["max_tokens"] == 50


class Refuses:
    """A backend that is not there, and says so at once."""

    asks_usage = True
    ready = True
    connect_ms = None
    sent = False

    def open(self) -> Refuses:
        return self

    def start(self, call: Call, sink: Sink) -> None:
        sink.on_error(ConnectFailed())

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...

    async def close(self) -> None: ...


async def test_a_429_that_nobody_else_may_take_passes_as_it_is() -> None:
    """Where the route allows no retries it was said in our words, without `retry-after-ms`."""
    async with place() as at:
        full = {"error": {"message": "slow down", "type": "rate_limit_exceeded", "param": None, "code": "rate_limit_exceeded"}}
        busy = answers(full, 429, retry_after_ms="1500")
        await at.serve(in_order(await at.target("a", busy), await at.target("b", FINE), retries=RetryBudget(ratio=0.0)))
        answer = await at.chat()
        assert (answer.status_code, answer.json(), answer.headers["retry-after-ms"]) == (429, full, "1500")


# verdicts


async def test_a_clients_mistake_that_comes_as_the_first_event_is_the_clients() -> None:
    """vLLM begins some streams before it looks at the request."""
    async with place() as at:
        said = {"error": {"object": "error", "message": "top_k must be above 0", "type": "BadRequestError", "param": None, "code": 400}}
        await at.serve(in_order(await at.target("a", stream(frame(said), frame(b"[DONE]"))), await at.target("b", answers_stream())))
        for _ in range(6):
            answer = await at.chat(stream=True)
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, "top_k must be above 0")
        assert (at.asked("a"), at.asked("b"), at.board.troubled) == (6, 0, 0)
        assert {record.ending for record in await at.server.ledger.wait(6)} == {"rejected"}


async def test_a_503_that_names_its_pause_is_a_failure_still() -> None:
    """The pause wiped out what was counted before: the breaker never opened, and one that was open closed."""
    async with place() as at:
        await at.serve(in_order(await at.target("a", answers({"error": "x"}, 503, retry_after="0")), await at.target("b", FINE)))
        for _ in range(8):
            assert (await at.chat()).status_code == 200
        assert at.asked("a") == 5


@pytest.mark.parametrize("reads", [True, False])
async def test_a_stream_that_goes_on_to_the_last_clock_says_nothing_against_the_backend(reads: bool) -> None:
    async with place() as at:

        async def endless(wire: Wire, seen: Seen) -> None:
            await wire.sse_head()
            while True:
                await wire.chunk(frame(WORD) * (1 if reads else 1000))
                await asyncio.sleep(0.01)

        await at.serve(in_order(await at.target("a", endless), timeouts=Timeouts(1, 1, 5, 0.3)))
        client = await head_and_body(at, CHAT | {"stream": True})
        if reads:
            answer = await client.answer()
            assert b"upstream_total_timeout" in answer.body
        (record,) = await at.server.ledger.wait(1)
        assert record.ending == "timeout"
        assert at.board.troubled == 0
        client.reset()


# load and shadow traffic


def test_the_load_of_a_backend_outlives_a_revision() -> None:
    """A new table has new targets: sticky and least-in-flight began at zero with every change."""
    board, load = HealthBoard(), InFlight()
    health = board.of((BackendSpec("custom"), "up"))
    before, after = (replace(target("http://127.0.0.1:1/v1"), health=health) for _ in range(2))
    load.enter(before)
    assert load.in_flight(after) == 1
    load.leave(before)
    assert load.in_flight(after) == 0


async def test_ordinary_requests_do_not_take_the_places_of_copies() -> None:
    async with place() as at:
        both = await at.target("s", in_turn(silence(), FINE))
        await at.serve(in_order(both, id="busy"), in_order(await at.target("a", FINE), shadow=Shadow(both, 1.0, 1)))
        client = await head_and_body(at, CHAT | {"model": "busy"})
        await at.ups["s"].request(1)
        assert (await at.chat()).status_code == 200
        assert (await at.ups["s"].request(2)).json["model"] == "up"
        client.reset()


class Looking(Refuses):
    """Notes how many requests were answered when its turn came."""

    def __init__(self, at: Place) -> None:
        self._at = at
        self.opened = asyncio.Event()

    def open(self) -> Looking:
        self.answered = next(iter(self._at.server.edges)).server_state.total_requests
        self.opened.set()
        return self


@pytest.mark.parametrize("streams", [True, False])
async def test_a_copy_is_made_when_the_original_is_written(streams: bool) -> None:
    """Reading and sending a large body takes its time: the original's last bytes waited for it."""
    async with place() as at:
        looking = Looking(at)
        plan = Shadow(target(looking, id="s", weight=0), 1.0)
        await at.serve(in_order(await at.target("a", answers_stream() if streams else FINE), shadow=plan))
        assert (await at.chat(stream=streams)).status_code == 200
        await asyncio.wait_for(looking.opened.wait(), 5)
        assert looking.answered == 1


# memory


async def test_a_connection_is_let_go_when_it_is_lost() -> None:
    """It and its parser hold each other, and it holds the key that was shown last: none of that may wait for the collector."""
    async with place() as at:
        await at.serve(in_order(await at.target("a", FINE)))
        client = await head_and_body(at, CHAT)
        await client.head()
        lost = weakref.ref(next(iter(at.server.edges)).flow)  # it alone holds it; its own, of a compiled class, would dangle
        gc.disable()
        try:
            client.reset()
            async with asyncio.timeout(5):
                while lost() is not None:
                    await asyncio.sleep(0)
        finally:
            gc.enable()


async def test_a_body_is_let_go_when_it_is_sent() -> None:
    """The connection to the backend kept it as long as the stream ran, and nothing counted it."""

    async def lasting(wire: Wire, seen: Seen) -> None:
        seen.body = b""
        await wire.sse_head()
        await wire.chunk(frame(WORD))
        await closed(wire, seen)

    async with place() as at:
        await at.serve(in_order(await at.target("a", lasting)))
        body = CHAT | {"stream": True, "pad": "y" * 600_000}
        client = await head_and_body(at, body)
        await client.head()
        await client.chunk()
        # By its type alone: isinstance asks the objects themselves, and some libraries' warn.
        held = [o for o in gc.get_objects() if type(o) is Call and len(o.body) > 500_000]
        assert not held
        client.reset()


async def test_a_body_that_is_kept_for_a_copy_counts_as_held() -> None:
    async def lasting(wire: Wire, seen: Seen) -> None:
        await wire.sse_head()
        await wire.chunk(frame(WORD))
        await closed(wire, seen)

    async with place() as at:
        plan = Shadow(await at.target("s", FINE, weight=0), 1.0)
        await at.serve(in_order(await at.target("a", lasting), shadow=plan))
        client = await head_and_body(at, CHAT | {"stream": True, "pad": "y" * 50_000})
        await client.head()
        assert at.server.relay.held_bytes > 50_000
        client.reset()
        await at.server.ledger.wait(1)
        async with asyncio.timeout(5):
            while at.server.relay.held_bytes:
                await asyncio.sleep(0)


# raw answers


async def test_a_raw_answer_that_breaks_off_is_a_reset_to_a_client_of_http_1_0() -> None:
    """There the end of the connection is the end of the message: an orderly close made half a file look whole."""
    half = raw(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 100\r\n\r\nhalf")
    async with place() as at:
        await at.serve(in_order(await at.target("a", half)))
        client = await head_and_body(at, SPEECH, "/v1/audio/speech", "1.0")
        with pytest.raises(ConnectionResetError):
            while await asyncio.wait_for(client.reader.read(65536), 5):
                pass


@pytest.mark.parametrize("tail", [b"[1]}", b"}"])
async def test_a_large_answer_without_a_length_is_read_to_its_end(tail: bytes) -> None:
    """Half of it may end in a brace too."""
    body = b'{"data":[' + b'{"x":1},' * 150_000 + (b'{}],"usage":' + tail)
    async with place() as at:
        await at.serve(in_order(await at.target("a", raw(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + body))))
        answer = await at.http.post("/v1/embeddings", json={"model": "m", "input": "hi"})
        assert answer.status_code == (200 if tail == b"[1]}" else 502)


async def test_a_raw_answer_that_ends_with_its_connection_does_so_for_the_client() -> None:
    """It was given a last chunk, as if anybody knew that it is whole."""
    async with place() as at:
        await at.serve(in_order(await at.target("a", raw(b"HTTP/1.0 200 OK\r\ncontent-type: audio/mpeg\r\n\r\nhalf"))))
        client = await head_and_body(at, SPEECH, "/v1/audio/speech")
        _, headers = await client.head()
        assert (headers.get("connection"), headers.get("transfer-encoding"), await client.rest()) == ("close", None, b"half")
