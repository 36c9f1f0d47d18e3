"""The driver must find every way in which a relay can be unfaithful: a benchmark that counts wrong answers measures nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.client import Answer
from bench.load import Plan, drive
from bench.payload import DONE, STREAMED, Ask, answer_body, chunk, stream_body
from bench.upstream import Connection, Mock, Tally

CHAT = Ask(7)
STREAM = Ask(7, STREAMED, chunks=3)
FIRST, SECOND, LAST = (chunk(7, index, index == 2) for index in range(3))


def judged(ask: Ask, body: bytes, *, strict: bool = True, status: int = 200) -> str:
    answer = Answer(ask, strict)
    for at in range(0, len(body), 50):
        answer.feed(body[at : at + 50])
    return answer.finish(status)


@pytest.mark.parametrize("strict", [True, False])
def test_the_right_answers_pass(strict: bool) -> None:
    assert judged(CHAT, answer_body(7), strict=strict) == ""
    assert judged(STREAM, stream_body(STREAM), strict=strict) == ""


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("ask", "body"),
    [
        (CHAT, answer_body(8)),
        (CHAT, b""),
        (STREAM, FIRST + LAST + DONE),
        (STREAM, FIRST + FIRST + SECOND + LAST + DONE),
        (STREAM, SECOND + FIRST + LAST + DONE),
        (STREAM, FIRST + SECOND + LAST),
    ],
    ids=["somebody else's", "empty", "lost", "doubled", "out of order", "not done"],
)
def test_wrong_answers_are_found(ask: Ask, body: bytes, strict: bool) -> None:
    assert judged(ask, body, strict=strict) != ""


def test_one_changed_byte_is_found() -> None:
    assert judged(STREAM, stream_body(STREAM).replace(b"bench", b"Bench", 1)) != ""
    assert judged(CHAT, answer_body(7) + b" ") != ""


def test_a_status_other_than_200_is_an_error() -> None:
    assert judged(CHAT, answer_body(7), status=502) == "status 502"


@asynccontextmanager
async def upstream() -> AsyncIterator[tuple[str, Tally]]:
    mock = Mock(Tally(), 3, 0, set())
    server = await asyncio.get_running_loop().create_server(lambda: Connection(mock), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", mock.tally
        while mock.tally.open_connections:
            await asyncio.sleep(0)


def plan(url: str, shape: str, mode: str, *, strict: bool = True, prompt_bytes: int = 0) -> Plan:
    return Plan(
        shape=shape,
        url=url,
        keys=("",),
        model="bench",
        mode=mode,
        connections=4,
        requests=12,
        chunks=3,
        interval_us=1000,
        prompt_bytes=prompt_bytes,
        include_usage=mode != "u",
        warmup=1,
        rate=1000.0,
        strict=strict,
        gated=False,
        timeout_s=10.0,
        release=url,
    )


@pytest.mark.parametrize(("shape", "mode", "sent"), [("closed", "u", 16), ("closed", "s", 16), ("open", "s", 12), ("idle", "h", 4)])
async def test_driver_and_upstream_count_alike(shape: str, mode: str, sent: int) -> None:
    async with upstream() as (url, tally):
        document = await drive(plan(url, shape, mode))
    assert document["errors"] == []
    assert document["requests"] + document["warmup_requests"] == sent == tally.answers + tally.streams
    assert tally.streams_aborted == 0


async def test_a_long_prompt_is_read_whole() -> None:
    async with upstream() as (url, _):
        document = await drive(plan(url, "closed", "u", prompt_bytes=300_000))
    assert document["error_count"] == 0


async def test_a_server_that_is_not_there_is_an_error() -> None:
    async with upstream() as (url, _):
        pass
    document = await drive(plan(url, "closed", "u"))
    assert document["error_count"] == 1
