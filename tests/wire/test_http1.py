"""The client's side of HTTP/1.1: methods, expectations, pipelines, framing, and the old version."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from gateway.relay.operations import ROUTES
from tests.faults.client import Client
from tests.upstream import Seen, Wire, chat_answer, well_behaved
from tests.wire.served import Served
from tests.wire.spec import check
from tests.wire.stage import CHAT, answers, stage, streams

RELAYED = sorted(path.decode() for path in ROUTES)


# methods


@pytest.mark.parametrize("path", RELAYED)
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_another_method_is_405_in_openais_shape(served: Served, method: str, path: str) -> None:
    with served.http() as http:
        answer = http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    check(answer.json(), "ErrorResponse")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", RELAYED)
async def test_head_is_405_without_a_body_and_the_connection_lives(served: Served, path: str) -> None:
    client = await Client.connect(served.gateway.port)
    client.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n\r\n".encode())
    status, headers = await client.head()
    assert (status, headers["allow"]) == (405, "POST")
    client.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")  # had a body followed, this would read it
    assert (await client.answer()).status == 200
    client.close()


@pytest.mark.parametrize("path", RELAYED)
def test_options_without_an_origin_is_405_or_says_what_is_allowed(served: Served, path: str) -> None:
    with served.bare() as http:
        answer = http.options(path)
    assert "POST" in answer.headers.get("allow", "")
    if answer.status_code != 204:
        assert answer.status_code == 405
        check(answer.json(), "ErrorResponse")


@pytest.mark.parametrize("path", RELAYED)
def test_preflights_of_every_relayed_route(served: Served, path: str) -> None:
    headers = {"origin": "https://a.example", "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with served.bare() as http:
        answer = http.options(path, headers=headers)
    assert answer.status_code in (200, 204)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert answer.headers["x-request-id"]


# expectations


async def test_continue_is_said_once_and_only_to_who_may_go_on() -> None:
    async with stage(well_behaved()) as s:
        body = orjson.dumps(CHAT)
        client = await s.connect()
        expects = ("content-length: " + str(len(body)), "expect: 100-continue")
        for _ in range(2):  # and again on the same connection
            client.send(s.head("/v1/chat/completions", *expects))
            assert (await client.head())[0] == 100
            client.send(body)
            assert (await client.answer()).status == 200
        for key, lines, status in (("sk-wrong", expects, 401), (None, ("content-length: 5000000", "expect: 100-continue"), 413)):
            client = await s.connect()
            client.send(s.head("/v1/chat/completions", *lines, key=key))
            assert (await client.head())[0] == status  # not 100 before it


async def test_a_body_that_comes_with_its_expectation_is_not_waited_for() -> None:
    async with stage(well_behaved()) as s:
        answer = await s.post(CHAT, "/v1/chat/completions", "expect: 100-continue")
        assert answer.status == 200
        assert (await s.post(CHAT, "/v1/chat/completions", "expect: 100-continue", version="1.0")).status == 200


# pipelines


async def test_a_pipeline_is_answered_in_order_relay_and_control_plane_mixed() -> None:
    delays = {"1": 0.2, "2": 0.0, "3": 0.05}

    async def script(wire: Wire, seen: Seen) -> None:
        await asyncio.sleep(delays[seen.json["user"]])
        await wire.answer(chat_answer("m", seen.json["user"]))

    async with stage(script) as s:
        client = await s.connect()
        asgi = b"GET /asgi HTTP/1.1\r\nhost: x\r\n\r\n"
        client.send(
            s.request(CHAT | {"user": "1"})
            + asgi
            + s.request(b"{")
            + s.request(CHAT | {"user": "2"})
            + asgi
            + s.request(CHAT | {"user": "3"})
        )
        got = [await client.answer() for _ in range(6)]
        assert [answer.status for answer in got] == [200, 200, 400, 200, 200, 200]
        assert [got[i].json["choices"][0]["message"]["content"] for i in (0, 3, 5)] == ["1", "2", "3"]
        assert got[1].body == got[4].body == b"GET 0"
        assert len({answer.headers.get("x-request-id") for answer in got if "x-request-id" in answer.headers}) >= 4


async def test_a_client_that_leaves_takes_its_pipeline_with_it() -> None:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.until_closed()

    async with stage(script) as s:
        client = await s.connect()
        client.send(s.request() * 3)
        seen = await s.up.request()
        client.close()
        await asyncio.wait_for(seen.over.wait(), 1)
        (record,) = await s.server.ledger.wait(1)
        assert record.ending == "client_gone"
        await asyncio.sleep(0.05)
        assert len(s.up.seen) == 1
        assert s.server.relay.meter.running() == 0


# framing


async def test_chunked_bodies_with_extensions_and_trailers() -> None:
    body = orjson.dumps(CHAT)
    sent = b"%x;name=value\r\n%b\r\n0\r\nauthorization: Bearer nobody\r\nx-trailer: 1\r\n\r\n" % (len(body), body)
    async with stage(well_behaved()) as s:
        client = await s.connect()
        for _ in range(3):
            client.send(s.head("/v1/chat/completions", "transfer-encoding: chunked") + sent)
            assert (await client.answer()).status == 200
        assert {seen.body for seen in s.up.seen} == {body}
        assert {seen.headers["content-length"] for seen in s.up.seen} == {str(len(body))}


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("content-length: 5", "content-length: 6"),
        ("content-length: +5",),
        ("content-length: 5, 5",),
        ("transfer-encoding: gzip",),
        ("transfer-encoding: chunked, identity",),
        ("x: a\r\n folded",),
        ("bad header: 1",),
    ],
)
async def test_what_two_servers_may_frame_differently_is_400_and_the_end(lines: tuple[str, ...]) -> None:
    async with stage(well_behaved()) as s:
        client = await s.connect()
        client.send(s.head("/v1/chat/completions", *lines) + b"5\r\nhello\r\n0\r\n\r\n" + s.request())
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        check(answer.json, "ErrorResponse")
        assert not s.up.seen


async def test_a_body_without_a_length_is_an_empty_one() -> None:
    async with stage(well_behaved()) as s:
        client = await s.connect()
        client.send(s.head() + s.request())
        assert [(await client.answer()).status for _ in range(2)] == [400, 200]


# HTTP/1.0


@pytest.mark.parametrize("stream", [False, True])
async def test_http_1_0_is_never_chunked(stream: bool) -> None:
    async with stage(well_behaved()) as s:
        client = await s.connect()
        client.send(s.request(CHAT | {"stream": stream}, "/v1/chat/completions", "connection: keep-alive", version="1.0"))
        raw = await client.rest()  # the connection ends: it is the end of the body
        head, _, body = raw.partition(b"\r\n\r\n")
        assert b" 200 " in head.partition(b"\r\n")[0]
        assert b"transfer-encoding" not in head
        assert body.endswith(b"data: [DONE]\n\n") if stream else orjson.loads(body)


async def test_http_1_0_without_a_host() -> None:
    async with stage(well_behaved()) as s:
        data = orjson.dumps(CHAT)
        head = f"POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer {s.server.key}\r\ncontent-length: {len(data)}\r\n\r\n"
        client = await s.connect()
        client.send(head.encode() + data)
        assert b" 200 " in (await client.rest())[:20]


async def test_connection_close_is_kept() -> None:
    async with stage(well_behaved()) as s:
        for stream in (False, True):
            client = await s.connect()
            client.send(s.request(CHAT | {"stream": stream}, "/v1/chat/completions", "connection: close"))
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"], await client.rest()) == (200, "close", b"")


@pytest.mark.alone
async def test_a_half_closing_client_is_taken_to_have_left() -> None:
    """A FIN cannot be told from leaving: what stops a backend for nobody must stop it here too."""

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.until_closed()

    async with stage(script) as s:
        client = await s.connect()
        client.send(s.request())
        seen = await s.up.request()
        gone_s = time.monotonic()
        client.writer.write_eof()
        await asyncio.wait_for(seen.over.wait(), 1)
        assert time.monotonic() - gone_s < 0.1
        assert await client.rest() == b""


# what comes from backends


async def test_headers_of_backends_stay_there() -> None:
    odd = {
        "set-cookie": "a=b",
        "server": "vllm",
        "x-ratelimit-remaining-requests": "5",
        "openai-organization": "o",
        "connection": "keep-alive",
    }
    async with stage(answers(chat_answer("m"), **odd)) as s:
        plain = await s.post()
        s.up.script = streams(b'data: {"id":"x","choices":[]}\n\n')
        streamed = await s.post(CHAT | {"stream": True})
        for answer in (plain, streamed):
            assert (
                not {"set-cookie", "server", "openai-organization", "x-ratelimit-remaining-requests", "connection"} & answer.headers.keys()
            )
            assert answer.headers["date"]
