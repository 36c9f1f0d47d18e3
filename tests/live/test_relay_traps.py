"""What goes wrong between a client and a server below ASGI. Each test is one trap (docs/decisions/0002-relay-below-asgi.md)."""

from __future__ import annotations

import asyncio
import re
import time

import orjson
import pytest

from auth.address import parse_networks
from auth.authenticator import Authenticator
from auth.principal import Limited, Limits, Principal
from auth.tokens import AccessTokens
from gateway.limits.slots import Slots
from gateway.relay import edge as edge_module
from tests.faults import scripts
from tests.faults.client import Answer, Client
from tests.faults.scene import CHAT, Scene, scene
from tests.faults.scripts import ROLE, silence, stream
from tests.upstream import Seen, Wire, chat_answer, well_behaved

CHAT_PATH = "/v1/chat/completions"
BODY = orjson.dumps(CHAT)


def head(stage: Scene, *lines: str, path: str = CHAT_PATH, version: str = "1.1", host: bool = True, key: bool = True) -> bytes:
    first = [f"POST {path} HTTP/{version}"] + ["host: x"] * host + [f"authorization: Bearer {stage.key}"] * key
    return ("\r\n".join([*first, *lines]) + "\r\n\r\n").encode("latin-1")


def chunked(body: bytes, size: int = 1000) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


async def ask(stage: Scene, *data: bytes) -> Answer:
    client = await stage.connect()
    for piece in data:
        client.send(piece)
    return await client.answer()


async def refused(stage: Scene, data: bytes, status: int, code: str | None = None) -> Client:
    """The answer is a refusal in our own shape, and the connection is closed behind it."""
    client = await stage.connect()
    client.send(data)
    answer = await client.answer()
    assert answer.status == status, answer
    if code is not None:
        assert answer.code == code
    assert answer.headers["x-request-id"].startswith("req-")
    assert answer.headers["connection"] == "close"
    assert await client.rest() == b""
    return client


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


# 2: bodies


@pytest.mark.parametrize("size", [70_000, 900_000, 5_000_000])
@pytest.mark.parametrize("how", ["length", "chunked"])
async def test_large_bodies(size: int, how: str) -> None:
    body = orjson.dumps({**CHAT, "pad": "x" * size})
    async with scene(well_behaved(), max_body_bytes=10_000_000, limits=Limits()) as stage:
        if how == "length":
            answer = await ask(stage, head(stage, f"content-length: {len(body)}"), body)
        else:
            answer = await ask(stage, head(stage, "transfer-encoding: chunked"), chunked(body, 60_000))
        assert answer.status == 200
        assert stage.up.seen[0].json == {**CHAT, "model": "up", "pad": "x" * size}


async def test_a_body_byte_by_byte() -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        for byte in head(stage, "transfer-encoding: chunked") + chunked(BODY, 10):
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200


async def test_the_client_leaves_while_its_exchange_runs_and_more_of_it_comes_in() -> None:
    """Reading is never paused: a full socket would hide that the client is gone."""
    async with scene(silence()) as stage:
        client = await stage.connect()
        client.send(stage.request(CHAT))
        seen = await stage.up.request()
        client.send(stage.request(b"x" * 300_000))
        await client.writer.drain()
        client.reset()
        await asyncio.wait_for(seen.closed.wait(), 1)


@pytest.mark.parametrize("declared", [True, False])
async def test_413_reaches_a_client_that_sends_first_and_reads_afterwards(declared: bool) -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send(head(stage, "content-length: 20000000" if declared else "transfer-encoding: chunked"))
        sent = 0
        try:
            for _ in range(200):
                piece = b"x" * 100_000
                client.send(piece if declared else b"%x\r\n%b\r\n" % (len(piece), piece))
                await client.writer.drain()
                sent += len(piece)
        except ConnectionError:
            pass
        answer = await client.answer()
        assert (answer.status, answer.code) == (413, "request_too_large")
        assert answer.headers["connection"] == "close"
        assert not stage.up.seen
        assert stage.server.relay.held_bytes == 0


async def test_413_comes_before_the_body() -> None:
    async with scene(well_behaved()) as stage:
        await refused(stage, head(stage, "content-length: 20000000"), 413, "request_too_large")


async def test_the_bodies_of_all_connections_together_are_bounded() -> None:
    async with scene(well_behaved(), max_held_bytes=500_000) as stage:
        assert (await ask(stage, head(stage, "content-length: 600000") + b"x" * 600_000)).code == "overloaded"
        first = await stage.connect()
        first.send(head(stage, "transfer-encoding: chunked") + b"61a80\r\n" + b"x" * 400_000)
        await until(lambda: stage.server.relay.held_bytes == 400_000)
        await refused(stage, head(stage, "transfer-encoding: chunked") + b"30d40\r\n" + b"x" * 200_000, 503, "overloaded")
        first.close()
        await until(lambda: stage.server.relay.held_bytes == 0)
        assert (await stage.chat()).status == 200


async def test_what_a_refused_body_did_not_hold_is_not_given_back() -> None:
    async with scene(well_behaved()) as stage:
        holder = await stage.connect()
        holder.send(head(stage, "content-length: 500000") + b"x" * 300_000)
        await until(lambda: stage.server.relay.held_bytes == 300_000)
        answer = await ask(stage, head(stage, "content-length: 200000", key=False) + b"x" * 200_000)
        assert answer.status == 401
        assert stage.server.relay.held_bytes == 300_000


# 3: one after the other


async def test_500_pipelined_refusals() -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send((head(stage, f"content-length: {len(BODY)}", key=False) + BODY) * 500)
        for _ in range(500):
            assert (await client.answer()).status == 401


async def test_requests_without_end_behind_a_running_one_are_bounded() -> None:
    async with scene(silence()) as stage:
        client = await stage.connect()
        client.send(stage.request(CHAT))
        await stage.up.request()
        (edge,) = stage.server.edges
        bad = head(stage, "content-length: 2", key=False) + b"{}"
        for _ in range(20):
            client.send(bad * 200)
            await client.writer.drain()
        await asyncio.sleep(0.05)
        assert len(edge._queue) <= edge_module.MAX_PIPELINED + 1


async def test_more_pipelined_requests_than_may_wait_are_answered_and_told() -> None:
    go = asyncio.Event()

    async def script(wire: Wire, seen: Seen) -> None:
        await go.wait()
        await well_behaved()(wire, seen)

    async with scene(script) as stage:
        client = await stage.connect()
        client.send(stage.request(CHAT) * 40)
        await stage.up.request()
        go.set()
        answers = [await client.answer() for _ in range(edge_module.MAX_PIPELINED + 1)]
        assert [a.status for a in answers] == [200] * edge_module.MAX_PIPELINED + [503]
        assert answers[-1].headers["connection"] == "close"
        assert await client.rest() == b""


async def test_trailers_are_never_headers() -> None:
    async with scene(well_behaved()) as stage:
        body = chunked(BODY)[:-2] + f"authorization: Bearer {stage.key}\r\nx-request-id: late\r\n\r\n".encode()
        answer = await ask(stage, head(stage, "transfer-encoding: chunked", key=False) + body)
        assert answer.status == 401
        client = await stage.connect()
        client.send(head(stage, "transfer-encoding: chunked") + body)
        assert (await client.answer()).status == 200
        client.send(head(stage, f"content-length: {len(BODY)}", key=False) + BODY)
        assert (await client.answer()).status == 401
        assert (await stage.record()).client_request_id is None


async def test_the_head_of_the_next_request_may_share_a_read_with_a_long_body() -> None:
    body = orjson.dumps({**CHAT, "pad": "x" * 200_000})
    async with scene(well_behaved(), limits=Limits()) as stage:
        (reader, writer) = await stage.server.connect()
        client = Client(reader, writer)
        stage.clients.append(client)
        first = stage.request(body)
        client.send(first[:1000])
        await until(lambda: any(edge._queue for edge in stage.server.edges))
        second = stage.request(CHAT)
        client.send(first[1000:] + second[:60])
        assert (await client.answer()).status == 200
        client.send(second[60:])
        assert (await client.answer()).status == 200


# 4: bugs and garbage


async def test_a_bug_in_a_callback_is_a_500_with_its_id() -> None:
    class Broken:
        def key_by_digest(self, digest: bytes) -> None:
            raise RuntimeError("secret detail")

    async with scene(well_behaved(), authenticator=Authenticator(Broken(), AccessTokens(b"k" * 32))) as stage:
        answer = await ask(stage, stage.request(CHAT))
        assert (answer.status, answer.code) == (500, "internal_error")
        assert b"secret" not in answer.body
        assert answer.headers["x-request-id"]


async def test_a_bug_while_admitting_is_a_500_and_settled() -> None:
    async with scene(well_behaved()) as stage:
        stage.server.relay.rng = None  # type: ignore[assignment]
        route = stage.server.relay.table.routes["m"]

        class Broken:
            def order(self, targets: object, context: object, rng: object) -> tuple[()]:
                raise RuntimeError("secret detail")

        object.__setattr__(route, "policy", Broken())
        answer = await stage.chat()
        assert (answer.status, answer.code) == (500, "internal_error")
        record = await stage.record()
        assert (record.status, record.ending, record.prompt_tokens) == (500, "upstream_error", 0)


async def test_a_bug_in_the_ledger_gives_the_permit_back() -> None:
    async with scene(well_behaved()) as stage:

        class Broken:
            progress = stage.server.ledger.progress

            def begin(self, *_: object) -> None:
                raise RuntimeError("secret detail")

        ledger, stage.server.relay.ledger = stage.server.relay.ledger, Broken()  # type: ignore[assignment]
        assert (await stage.chat()).status == 500
        stage.server.relay.ledger = ledger


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.com:80 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\nhost: x\n\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\na: \x00\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, x\r\n\r\n",
    ],
)
async def test_garbage_is_a_400_of_ours(garbage: bytes) -> None:
    async with scene(well_behaved()) as stage:
        await refused(stage, garbage, 400)
        assert not stage.up.seen


async def test_a_broken_body_is_a_400() -> None:
    async with scene(well_behaved()) as stage:
        await refused(stage, head(stage, "transfer-encoding: chunked") + b"5\r\nhello\r\nzz\r\n", 400, "invalid_request")


async def test_a_body_of_unknown_length_is_a_400() -> None:
    async with scene(well_behaved()) as stage:
        await refused(stage, head(stage, "transfer-encoding: identity") + stage.request(CHAT), 400, "invalid_request")
        assert not stage.up.seen


async def test_garbage_behind_a_refused_body_does_not_eat_the_refusal() -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send(head(stage, "transfer-encoding: chunked", key=False))
        status, headers = await client.head()
        client.send(b"5\r\nhello\r\nzz\r\n")
        assert status == 401
        assert len(await client.rest()) == int(headers["content-length"])


async def test_garbage_during_an_answer_never_writes_into_it() -> None:
    async with scene(stream(b"data: %b\n\n" % orjson.dumps(ROLE), after=scripts.closed)) as stage:
        client = await stage.send(CHAT | {"stream": True})
        await client.head()
        await client.chunk()
        client.send(b"\x00garbage\r\n\r\n")
        try:
            left = await client.rest()
        except ConnectionError:
            left = b""
        assert b"HTTP/1.1" not in left
        assert (await stage.record()).ending == "client_gone"
        await stage.up.seen[0].closed.wait()


# 6: bounds


async def test_too_many_headers() -> None:
    async with scene(well_behaved()) as stage:
        fields = [f"x-{n}: 1" for n in range(101)]
        await refused(stage, head(stage, *fields, "content-length: 0"), 431, "headers_too_large")
        await refused(stage, head(stage, *fields, path="/asgi", key=False), 431, "headers_too_large")


@pytest.mark.parametrize("path", [CHAT_PATH, "/asgi"])
@pytest.mark.parametrize("end", [b"\r\n\r\n", b""])
@pytest.mark.parametrize("size", [33_000, 200_000])
async def test_headers_too_large(path: str, end: bytes, size: int) -> None:
    async with scene(well_behaved()) as stage:
        start = head(stage, path=path)[:-2]
        client = await stage.connect()
        for piece in (start, b"x: " + b"a" * size, end):
            client.send(piece)
            await client.writer.drain()
        answer = await client.answer()
        assert (answer.status, answer.code) == (431, "headers_too_large")


@pytest.mark.parametrize("size", [40_000])
async def test_a_target_too_large(size: int) -> None:
    async with scene(well_behaved()) as stage:
        await refused(stage, b"GET /" + b"a" * size + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431)


async def test_headers_just_small_enough() -> None:
    async with scene(well_behaved()) as stage:
        answer = await ask(stage, stage.request(CHAT, more=["x: " + "a" * 32_000]))
        assert answer.status == 200


@pytest.mark.parametrize("what", ["extension", "trailer", "trailers", "tiny chunks"])
async def test_framing_without_end_is_bounded(what: str) -> None:
    pieces = {
        "extension": (b"5;", b"x" * 50_000),
        "trailer": (b"5\r\nhello\r\n0\r\nx: ", b"x" * 50_000),
        "trailers": (b"5\r\nhello\r\n0\r\n", b"x: y\r\n" * 10_000),
        "tiny chunks": (b"", (b"1;" + b"y" * 1000 + b"\r\nx\r\n") * 50),
    }
    start, more = pieces[what]
    async with scene(well_behaved(), max_body_bytes=10_000_000) as stage:
        client = await stage.connect()
        client.send(head(stage, "transfer-encoding: chunked") + start)
        sent = 0
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                client.send(more)
                await client.writer.drain()
                sent += len(more)
                await asyncio.sleep(0)
        assert sent < 5_000_000


async def test_small_chunks_are_no_attack() -> None:
    async with scene(well_behaved(), limits=Limits()) as stage:
        body = orjson.dumps({**CHAT, "pad": "x" * 300_000})
        assert (await ask(stage, head(stage, "transfer-encoding: chunked"), chunked(body, 4))).status == 200


async def _times_out(stage: Scene, client: Client) -> None:
    """Every connection has a clock; when it runs out, the connection is closed."""
    await _run_out(stage)
    try:
        await client.rest()
    except ConnectionError:
        pass
    client.close()
    await until(lambda: not stage.server.edges)


async def _run_out(stage: Scene) -> None:
    """The clock of the only connection runs out."""
    await until(lambda: len(stage.server.edges) == 1)
    (edge,) = stage.server.edges
    await until(lambda: edge.deadline_s)
    edge.deadline_s = 1e-9


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"POST /v1/chat/comp",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n",
        b"POST /asgi HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhel",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{",
    ],
)
async def test_every_connection_that_waits_for_its_client_has_a_clock(data: bytes) -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send(data)
        await asyncio.sleep(0.02)
        await _times_out(stage, client)


async def told_late(client: Client) -> Answer:
    """The body took too long: 408, and the end of the connection."""
    answer = await client.answer()
    assert answer.status == 408, answer
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"].startswith("req-")
    assert "did not come in time" in answer.json["error"]["message"]
    assert await client.rest() == b""
    return answer


@pytest.mark.parametrize("path", [CHAT_PATH, "/asgi"])
async def test_a_body_that_stops_has_a_clock(path: str) -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send(head(stage, "content-length: 50", path=path) + b"{")
        await asyncio.sleep(0.02)
        await _run_out(stage)
        assert (await told_late(client)).code == "request_timeout"
        assert stage.server.relay.held_bytes == 0
        client.close()
        await until(lambda: not stage.server.edges)
        assert not stage.server.ledger.begun


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/messages", "/asgi"])
@pytest.mark.parametrize("how", ["content-length: 500", "transfer-encoding: chunked"])
async def test_a_body_that_trickles_has_a_clock_too(path: str, how: str) -> None:
    """Each read comes soon after the one before; all of them never come."""
    async with scene(well_behaved(), timeout_body_s=0.3) as stage:
        client = await stage.connect()
        client.send(head(stage, how, path=path))
        answer = asyncio.create_task(told_late(client))
        while not answer.done():
            client.send(b"1\r\nx\r\n" if "chunked" in how else b"x")
            await asyncio.sleep(0.02)
        said = (await answer).json
        assert said["error"]["type"] == "invalid_request_error"
        assert ("type" in said) == (path == "/v1/messages"), "in the shape of its protocol"
        assert stage.server.relay.held_bytes == 0
        client.close()
        await until(lambda: not stage.server.edges)
        assert not stage.up.seen
        assert not stage.server.ledger.begun


async def test_a_late_body_waits_for_nobody_who_reads_an_earlier_answer() -> None:
    async with scene(well_behaved(), timeout_body_s=0.3) as stage:
        client = await stage.connect()
        client.send(stage.request(CHAT) + head(stage, "content-length: 50") + b"{")
        assert (await client.answer()).status == 200
        await told_late(client)


async def test_a_body_within_its_time_is_served_and_the_next_has_a_time_of_its_own() -> None:
    async with scene(well_behaved(), timeout_body_s=2.0) as stage:
        client = await stage.connect()
        for number in range(1, 4):
            client.send(stage.request(CHAT)[:-5])
            await asyncio.sleep(0.8)
            client.send(BODY[-5:])
            assert (await client.answer()).status == 200, number


async def test_no_time_for_bodies_is_no_limit() -> None:
    async with scene(well_behaved(), timeout_body_s=0.0) as stage:
        client = await stage.connect()
        client.send(stage.request(CHAT)[:-5])
        await until(lambda: len(stage.server.edges) == 1)
        (edge,) = stage.server.edges
        await asyncio.sleep(0.3)
        assert edge.deadline_s > stage.server.relay.clock.now_s + 50, "the one between two reads"
        client.send(BODY[-5:])
        assert (await client.answer()).status == 200


async def test_the_rest_of_what_asgi_has_answered_has_a_clock_that_it_does_not_wind() -> None:
    async with scene(well_behaved(), timeout_body_s=0.3) as stage:
        client = await stage.connect()
        client.send(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n")
        assert (await client.answer()).status == 404
        async with asyncio.timeout(5):
            while stage.server.edges:
                client.send(b"x")
                await asyncio.sleep(0.02)


# 2: what changes while a body is on its way


CHANGES: dict[str, tuple[dict[str, object], int, str]] = {
    "revoked": ({}, 401, "invalid_api_key"),
    "no inference": ({"scopes": frozenset({"usage"})}, 403, "permission_denied"),
    "elsewhere": ({"networks": parse_networks(["192.0.2.0/24"])}, 403, "permission_denied"),
    "other models": ({"models": ("x",), "_allows": Principal.compile_globs(("x",))}, 404, "model_not_found"),
    "a limit": ({"callers": (Limited("k", Limits(tpm=1)),)}, 429, "rate_limit_exceeded"),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_credential_is_judged_as_it_is_when_the_body_is_there(what: str) -> None:
    members, status, code = CHANGES[what]
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send(stage.request(CHAT)[:-5])
        await until(lambda: stage.server.relay.held_bytes)
        stage.server.keys.change(stage.key, **members)
        client.send(BODY[-5:])
        answer = await client.answer()
        assert (answer.status, answer.code) == (status, code)
        assert stage.server.relay.held_bytes == 0
        assert not stage.up.seen
        assert not stage.server.ledger.begun
        client.send(stage.request(CHAT))  # the connection is in step, and the answer no different where the head finds out
        again = await client.answer()
        assert (again.status, again.body) == (answer.status, answer.body)
        assert again.headers.keys() == answer.headers.keys()


async def test_a_change_of_others_changes_nothing() -> None:
    async with scene(well_behaved()) as stage:
        other = stage.server.keys.issue()
        client = await stage.connect()
        client.send(stage.request(CHAT)[:-5])
        await until(lambda: stage.server.relay.held_bytes)
        stage.server.keys.change(other)
        client.send(BODY[-5:])
        assert (await client.answer()).status == 200


async def test_what_ends_by_itself_has_ended_when_a_late_body_is_there() -> None:
    """Nothing is put in force when a key expires."""
    async with scene(well_behaved()) as stage:
        stage.server.keys.expire(stage.key, time.time() + 0.5)
        client = await stage.connect()
        client.send(stage.request(CHAT)[:-5])
        await asyncio.sleep(1.3)
        client.send(BODY[-5:])
        assert (await client.answer()).code == "invalid_api_key"
        assert not stage.server.ledger.begun


async def test_who_waits_for_a_slot_is_judged_when_there_is_one() -> None:
    gate = asyncio.Event()

    async def script(wire: Wire, seen: Seen) -> None:
        await gate.wait()
        await wire.answer(chat_answer("up"))

    async with scene(script, slots=Slots(1, 5.0)) as stage:
        first = await stage.connect()
        first.send(stage.request(CHAT, key=stage.server.key))
        await stage.up.request()
        second = await stage.send(CHAT)
        await until(lambda: stage.server.relay.slots.waiting)
        stage.server.keys.change(stage.key)
        gate.set()
        assert (await first.answer()).status == 200
        assert (await second.answer()).code == "invalid_api_key"
        assert len(stage.up.seen) == len(stage.server.ledger.begun) == 1
        assert (stage.server.relay.slots.running, stage.server.relay.slots.waiting) == (0, 0)


async def test_an_idle_connection_has_a_clock_that_empty_lines_do_not_wind() -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.send(CHAT)
        await client.answer()
        (edge,) = stage.server.edges
        before = edge.deadline_s
        assert before
        for _ in range(3):
            client.send(b"\r\n")
            await asyncio.sleep(0.01)
        assert edge.deadline_s <= before
        await _times_out(stage, client)


async def test_an_asgi_request_has_no_clock_once_it_is_there() -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi")
        assert (await client.answer()).status == 404


async def test_an_asgi_body_is_capped_too() -> None:
    async with scene(well_behaved()) as stage:
        await refused(stage, b"POST /asgi HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n", 413, "request_too_large")
        client = await stage.connect()
        client.send(b"POST /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(500):
                client.send(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
                await client.writer.drain()


# 7: heads


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("split", [None, 1, 90])
async def test_an_upgrade_that_we_do_not_do_keeps_its_body(framing: str, split: int | None) -> None:
    lines = ["connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA"]
    lines.append(f"content-length: {len(BODY)}" if framing == "length" else "transfer-encoding: chunked")
    async with scene(well_behaved()) as stage:
        data = head(stage, *lines) + (BODY if framing == "length" else chunked(BODY))
        client = await stage.connect()
        for _ in range(2):  # and it stays in step
            for at in range(0, len(data), split or len(data)):
                client.send(data[at : at + (split or len(data))])
                if split:
                    await asyncio.sleep(0)
            answer = await client.answer()
            assert (answer.status, answer.json) == (200, chat_answer("m"))
        client.send(b"GET /asgi HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n" + stage.request(CHAT))
        assert (await client.answer()).body == b"GET 0"
        assert (await client.answer()).status == 200


async def test_an_upgrade_with_connection_close() -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send(head(stage, "connection: close, Upgrade", "upgrade: h2c", f"content-length: {len(BODY)}") + BODY)
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.rest() == b""


@pytest.mark.parametrize("stream_it", [False, True])
async def test_http_1_0_is_delimited_by_close(stream_it: bool) -> None:
    body = orjson.dumps(CHAT | {"stream": stream_it})
    async with scene(well_behaved()) as stage:
        answer = await ask(stage, head(stage, f"content-length: {len(body)}", version="1.0", host=False) + body)
        assert answer.status == 200
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.body.endswith(b"data: [DONE]\n\n" if stream_it else b"}")
        answer = await ask(stage, head(stage, "expect: 100-continue", f"content-length: {len(body)}", version="1.0") + body)
        assert answer.status == 200


async def test_100_continue_comes_after_the_credential() -> None:
    async with scene(well_behaved()) as stage:
        client = await stage.connect()
        client.send(head(stage, "Expect: 100-continue", f"content-length: {len(BODY)}"))
        assert (await client.head())[0] == 100
        client.send(BODY)
        assert (await client.answer()).status == 200
        await refused(stage, head(stage, "expect: 100-continue", "content-length: 50", key=False), 401, "invalid_api_key")
        await refused(stage, head(stage, "expect: 100-continue", "content-length: 50000000"), 413, "request_too_large")
        answer = await ask(stage, head(stage, "expect: 100-continue", f"content-length: {len(BODY)}") + BODY)
        assert answer.status == 200, "it did not wait"


@pytest.mark.parametrize("hosts", [[], ["host: a", "host: b"]])
@pytest.mark.parametrize("path", [CHAT_PATH, "/asgi"])
async def test_exactly_one_host(hosts: list[str], path: str) -> None:
    async with scene(well_behaved()) as stage:
        await refused(stage, head(stage, *hosts, f"content-length: {len(BODY)}", path=path, host=False) + BODY, 400)


@pytest.mark.parametrize(
    "name", ["authorization: Bearer {}", "Authorization: bearer {}", "AUTHORIZATION: BEARER {}", "x-api-key: {}", "api-key: {}"]
)
async def test_where_a_credential_may_stand(name: str) -> None:
    async with scene(well_behaved()) as stage:
        answer = await ask(stage, head(stage, name.format(stage.key), f"content-length: {len(BODY)}", key=False) + BODY)
        assert answer.status == 200
        assert stage.key not in str(stage.up.seen[0].headers)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["authorization: Basic abc"],
        ["authorization: Bearer"],
        ["authorization: Bearer "],
        ["authorization: Bearer \xff\xfe"],
        ["authorization: Bearer sk-gw-unknown"],
        ["authorization: Bearer a.b.c"],
        ["authorization: Bearer {key}", "x-api-key: other"],
        ["x-api-key: {key}", "x-api-key: {key}x"],
    ],
)
async def test_what_is_no_credential(lines: list[str]) -> None:
    async with scene(well_behaved()) as stage:
        filled = [line.replace("{key}", stage.key) for line in lines]
        client = await stage.connect()
        client.send(head(stage, *filled, "content-length: 5", key=False) + b"[1,2]")
        answer = await client.answer()
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        client.send(stage.request(CHAT))
        assert (await client.answer()).status == 200, "the connection lives on"


async def test_every_answer_has_its_id_and_date() -> None:
    async with scene(well_behaved()) as stage:
        ids = set()
        for body in (CHAT, CHAT | {"stream": True}, [], {}, {"model": "x", "messages": [{}]}):
            answer = await stage.post(body, more=["x-request-id: mine"])
            ids.add(answer.headers["x-request-id"])
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers["date"])
        assert len(ids) == 5
        assert all(re.fullmatch(r"req-[0-9a-f]{24}", request_id) for request_id in ids)
        assert (await stage.record()).client_request_id == "mine"


async def test_cross_origin() -> None:
    async with scene(well_behaved()) as stage:
        assert "access-control-allow-origin" not in (await stage.chat()).headers
        for body in (CHAT, CHAT | {"stream": True}, []):
            answer = await stage.post(body, more=["origin: https://a.example"])
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
    async with scene(well_behaved(), cors_origins=frozenset((b"https://a.example",))) as stage:
        answer = await stage.post(CHAT, more=["origin: https://a.example"])
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.headers["vary"] == "origin"
        answer = await stage.post(CHAT, more=["origin: https://b.example"])
        assert "access-control-allow-origin" not in answer.headers


async def test_a_query_is_not_part_of_the_path() -> None:
    async with scene(well_behaved()) as stage:
        assert (await stage.post(CHAT, CHAT_PATH + "?api-version=1")).status == 200
        assert stage.up.seen[0].path == CHAT_PATH


# 8: smuggling in JSON


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"m","model":"other","messages":[{}]}', "model"),
        (b'{"model":"m","mod\\u0065l":"other","messages":[{}]}', "model"),
        (b'{"mod\\u0065l":"m","messages":[{}]}', "model"),
        (b'{"model":"m","Model":"other","messages":[{}]}', "model"),
        (b'{"model":"m","\\u017ftream":true,"messages":[{}]}', "stream"),
        (b'{"model":"m","MAX_TO\\u212aENS":1,"messages":[{}]}', "max_tokens"),
        (b'{"model":"m","max_tokens":1,"max_tokens":100000,"messages":[{}]}', "max_tokens"),
        (b'{"model":"m","N":7,"messages":[{}]}', "n"),
        (b"[" * 5000, None),
        (b'{"a":' * 5000, None),
        (b'{"model":"m","messages":' + b"[" * 5000 + b"]" * 5000 + b"}", None),
        (b'{"model":"m","messages":[{"content":"\\ud800"}]}', None),
        (b'{"model":"m","messages":[{"content":"\xff"}]}', None),
        (b'{"model":"m","messages":[{"content":NaN}]}', None),
        (b"", None),
        (b"null", None),
        (b"[]", None),
        (b'"m"', None),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":"hi"}', "messages"),
        (b'{"model":7,"messages":[{}]}', "model"),
        (b'{"messages":[{}]}', "model"),
        (b'{"model":"m","messages":[{}],"stream":1}', "stream"),
        (b'{"model":"m","messages":[{}],"n":0}', "n"),
        (b'{"model":"m","messages":[{}],"n":true}', "n"),
        (b'{"model":"m","messages":[{}],"max_tokens":-1}', "max_tokens"),
        (b'{"model":"m","messages":[{}],"max_tokens":1.5}', "max_tokens"),
        (b'{"model":"m","messages":[{}],"stream_options":{}}', "stream_options"),
    ],
)
async def test_bodies_that_are_refused(body: bytes, param: str | None) -> None:
    async with scene(well_behaved()) as stage:
        answer = await stage.post(body)
        assert answer.status == 400, answer
        assert answer.json["error"].keys() == {"message", "type", "param", "code"}
        assert answer.json["error"]["param"] == param
        assert not stage.up.seen
        assert not stage.server.ledger.begun


async def test_absurd_numbers_are_no_bug() -> None:
    async with scene(well_behaved(), limits=Limits()) as stage:
        assert (await stage.chat(n=128, max_tokens=2**63)).status == 200
        assert (await stage.chat(n=129)).status == 400
        assert (await stage.post({"model": "m", "prompt": ["x"] * 99, "best_of": 128}, "/v1/completions")).status == 200
        assert (await stage.post({"model": "m", "prompt": "x", "best_of": 2**63}, "/v1/completions")).status == 400
        assert (await stage.chat(messages=[{"role": "user", "content": "x"}] * 10_001)).status == 400


async def test_unknown_models() -> None:
    async with scene(well_behaved()) as stage:
        for stream_it in (False, True):
            answer = await stage.post({"model": "other", "messages": [{}], "stream": stream_it})
            assert (answer.status, answer.code) == (404, "model_not_found")
        hidden = stage.server.keys.issue(models=("x*",))
        client = await stage.connect()
        client.send(stage.request(CHAT, key=hidden))
        assert (await client.answer()).code == "model_not_found"
        client.send(stage.request(CHAT, key=stage.server.keys.issue(scopes=frozenset({"usage"}))))
        assert (await client.answer()).code == "permission_denied"
        answer = await stage.post({"model": "x" * 100_000, "messages": [{}]})
        assert len(answer.body) < 1000


# splices


async def test_parameters_go_in_where_the_client_sends_none() -> None:
    fields = {"parameters": {"temperature": 0.7, "max_tokens": 2048, "top_p": 0.5}}
    async with scene(well_behaved(), fields=fields) as stage:
        await stage.chat(temperature=None, top_p=1, max_completion_tokens=5)
        assert stage.up.seen[0].json == CHAT | {"model": "up", "temperature": 0.7, "top_p": 1, "max_completion_tokens": 5}
        await stage.chat()
        assert stage.up.seen[1].json == CHAT | {"model": "up", **fields["parameters"]}


async def test_a_splice_goes_to_the_top_and_nowhere_else() -> None:
    """A nested member of the same name is the client's own, and no way round the reserved limit."""
    fields = {"parameters": {"temperature": 0.7, "max_tokens": 20}}
    nested = {"metadata": {"max_tokens": 7, "temperature": 1, "stream_options": None, "model": "z"}}
    async with scene(well_behaved(), fields=fields) as stage:
        await stage.chat(stream=True, **nested)
        wanted = CHAT | nested | fields["parameters"] | {"model": "up", "stream": True, "stream_options": {"include_usage": True}}
        assert stage.up.seen[0].json == wanted


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_is_never_sent_under_two_names(name: str) -> None:
    from gateway.routing.table import Prices

    async with scene(well_behaved(), fields={"parameters": {name: 20}, "prices": Prices(1, 1)}) as stage:
        await stage.chat()
        assert stage.up.seen[0].json == CHAT | {"model": "up", name: 20}


# 5: draining


async def test_drain() -> None:
    go = asyncio.Event()

    async def script(wire: Wire, seen: Seen) -> None:
        if not seen.json.get("stream"):
            await well_behaved()(wire, seen)
            return
        await wire.sse_head()
        await wire.event(ROLE)
        await go.wait()
        await wire.event(b"[DONE]")
        await wire.end()

    async with scene(script) as stage:
        idle = await stage.send(CHAT)
        assert "connection" not in (await idle.answer()).headers
        running = await stage.send(CHAT | {"stream": True})
        await running.head()
        stage.server.relay.draining = True
        for edge in list(stage.server.edges):
            edge.shutdown()
        idle.send(stage.request(CHAT))
        answer = await idle.answer()
        assert answer.status == 200, "what is already on its way is answered"
        assert answer.headers["connection"] == "close"
        assert await idle.rest() == b""
        assert [edge.busy for edge in stage.server.edges] == [True]
        go.set()
        body = b""
        while chunk := await running.chunk() if not body.endswith(b"[DONE]\n\n") else b"":
            body += chunk
        assert (await stage.record(2)).ending == "success"
        await until(lambda: not any(edge.busy for edge in stage.server.edges))


async def test_the_end_of_a_drain() -> None:
    async with scene(scripts.in_turn(stream(b"data: %b\n\n" % orjson.dumps(ROLE), after=scripts.closed), silence())) as stage:
        streamed = await stage.send(CHAT | {"stream": True})
        await streamed.head()
        await streamed.chunk()
        waiting = await stage.send(CHAT)
        await stage.up.request(2)
        for edge in list(stage.server.edges):
            edge.end_now()
        assert b'"code":"shutting_down"' in await streamed.rest()
        answer = await waiting.answer()
        assert (answer.status, answer.code) == (503, "shutting_down")
        records = await stage.server.ledger.wait(2)
        assert {(r.status, r.ending) for r in records} == {(200, "shutdown"), (503, "shutdown")}
        for seen in stage.up.seen:
            await seen.closed.wait()
