"""The pool's rules, without sockets. What happens on the wire is in tests/faults, the contract in tests/contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from backends.base import Call
from backends.custom import CustomBackend
from backends.http1 import IDLE_S, MAX_IDLE, Connection, Http1Pool, open_connections
from tests.faults.test_fuzz import CALL, FakeTransport, Told
from tests.upstream import Upstream

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def _connection(pool: Http1Pool) -> tuple[Connection, FakeTransport]:
    connection, transport = Connection(pool), FakeTransport()
    connection.connection_made(transport)
    return connection, transport


def _sent(pool: Http1Pool, call: Call) -> bytes:
    connection, transport = _connection(pool)
    exchange = pool.open()
    exchange._call, exchange.sink = call, Told()
    exchange._send(connection, reused=False)
    return b"".join(transport.written)


def test_the_request_as_it_is_written() -> None:
    pool = CustomBackend("http://user:pw@h:81/base/v1", "Bearer secret")
    body = b'{"a":1}'
    sent = _sent(pool, Call("t", "chat", "/chat/completions", body, ((b"x-request-id", b"r"),), 5))
    head, _, rest = sent.partition(b"\r\n\r\n")
    assert rest == body
    first, *lines = head.split(b"\r\n")
    assert first == b"POST /base/v1/chat/completions HTTP/1.1"
    assert dict(line.split(b": ", 1) for line in lines) == {
        b"host": b"h:81",
        b"authorization": b"Bearer secret",
        b"content-type": b"application/json",
        b"accept": b"application/json, text/event-stream",
        b"accept-encoding": b"identity",
        b"content-length": b"7",
        b"x-request-id": b"r",
    }
    assert b"authorization" not in _sent(CustomBackend("http://h/v1"), CALL)
    assert _sent(pool, Call("t", "chat", "/chat/completions", b"x" * 100_000, (), 5)).endswith(b"x" * 100_000)


def test_tokenize_stands_beside_v1() -> None:
    pool = CustomBackend("http://h/base/v1")
    assert (pool.target("/tokenize"), pool.target("/embeddings")) == ("/base/tokenize", "/base/v1/embeddings")


def test_head_caches_are_bounded() -> None:
    pool = CustomBackend("http://h/v1")
    for number in range(1000):
        pool.head("/x", b"multipart/form-data; boundary=%d" % number)
    assert len(pool._heads) <= 64


async def test_the_youngest_connection_is_taken_and_old_ones_are_closed() -> None:
    pool = CustomBackend("http://h/v1")
    old, young = _connection(pool), _connection(pool)
    pool.give(old[0], 0.0)
    pool.give(young[0], IDLE_S - 0.1)
    assert pool.take(IDLE_S) is young[0]
    assert pool.take(IDLE_S) is None
    assert old[1].closed
    assert not young[1].closed


async def test_a_full_or_closed_pool_keeps_nothing() -> None:
    pool = CustomBackend("http://h/v1")
    for _ in range(MAX_IDLE + 5):
        pool.give(_connection(pool)[0], 1.0)
    assert len(pool.idle) == MAX_IDLE
    assert open_connections([pool]) == {"active": 5, "idle": MAX_IDLE}
    await pool.close()
    late, transport = _connection(pool)
    pool.give(late, 1.0)
    assert transport.closed
    assert not pool.idle


async def test_what_is_pooled_and_what_is_not() -> None:
    async def after(answer: bytes, unflushed: int = 0) -> bool:
        pool = CustomBackend("http://h/v1")
        connection, transport = _connection(pool)
        transport.get_write_buffer_size = lambda: unflushed  # type: ignore[method-assign]
        exchange, told = pool.open(), Told()
        exchange._call, exchange.sink = CALL, told
        exchange._send(connection, reused=False)
        connection.data_received(answer)
        assert told.ending == "end False"
        assert transport.closed is (connection not in pool.idle)
        return not transport.closed

    assert await after(OK)
    assert not await after(OK, unflushed=1)
    assert not await after(OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"))
    assert not await after(OK.replace(b"1.1", b"1.0"))
    assert await after(OK.replace(b"1.1", b"1.0").replace(b"OK\r\n", b"OK\r\nconnection: keep-alive\r\n"))
    assert not await after(OK + OK)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_aborting_while_connecting_leaves_nothing(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """uvloop closes the transport of a cancelled connect without a word to the protocol."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_abort_while_connecting())


async def _abort_while_connecting() -> None:
    async with Upstream() as up:
        pool = CustomBackend(up.url)
        told_before: list[tuple[Told, str | None]] = []
        for turns in range(12):
            exchange, told = pool.open(), Told()
            exchange.start(CALL, told)
            for _ in range(turns):
                await asyncio.sleep(0)
            told_before.append((told, told.ending))
            exchange.abort()
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert pool.connections == set(pool.idle)
        assert all(told.ending == ending for told, ending in told_before)
