"""Asking servers that were configured or named by such a server: where it may go, what it takes back, how long it waits."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from auth.fetch import MAX_BYTES, Fetcher
from auth.provider import Answer, FetchFailed
from tests.wire.authority import Authority

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that reads one request (its head and, if short, body) and lets `handle` answer; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
            await handle(head + await reader.readexactly(length), writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


def replying(status: int, body: bytes, **headers: str) -> Handler:
    async def handle(request: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return handle


async def reason(url: str, fetcher: Fetcher | None = None) -> str:
    fetcher = fetcher or Fetcher()
    with pytest.raises(FetchFailed) as failed:
        await fetcher.get(url)
    await fetcher.close()
    assert failed.value.__cause__ is None
    return failed.value.reason


async def test_get_and_post() -> None:
    seen: list[bytes] = []

    async def handle(request: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        await replying(200, b'{"a": 1}', set_cookie="a=b")(request, writer)

    fetcher = Fetcher()
    async with server(handle) as port:
        assert await fetcher.get(f"http://localhost:{port}/x?y", {"authorization": "Bearer t"}) == Answer(200, {"a": 1})
        assert await fetcher.post(f"http://localhost:{port}/x", {"a": "b c&"}) == Answer(200, {"a": 1})
    await fetcher.close()
    assert seen[0].startswith(b"GET /x?y HTTP/1.1\r\n")
    assert f"host: localhost:{port}".encode() in seen[0].lower()
    assert b"authorization: bearer t" in seen[0].lower()
    assert seen[1].endswith(b"\r\n\r\na=b+c%26")
    assert b"cookie" not in seen[1].lower()


async def test_no_redirect_is_followed_and_no_proxy_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    hits: list[bytes] = []

    async def other(request: bytes, writer: asyncio.StreamWriter) -> None:
        hits.append(request)

    fetcher = Fetcher()
    async with server(other) as away, server(replying(302, b"", location=f"http://127.0.0.1:{away}/")) as port:
        assert await fetcher.get(f"http://127.0.0.1:{port}/", {"authorization": "Bearer t"}) == Answer(302, None)
    await fetcher.close()
    assert hits == []


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (replying(200, b"<html>"), "garbage"),
        (replying(200, b"["), "garbage"),
        (replying(200, b'"' + b"x" * MAX_BYTES + b'"'), "large"),
        (replying(200, gzip.compress(b" " * 50_000_000 + b"{}"), content_encoding="gzip"), "garbage"),
        (replying(200, b"{}", transfer_encoding="chunked"), "failed"),
    ],
)
async def test_answers_that_are_not_taken(handler: Handler, expected: str) -> None:
    async with server(handler) as port:
        assert await reason(f"http://127.0.0.1:{port}/") == expected


async def test_a_server_that_says_nothing_and_one_that_trickles() -> None:
    async def silent(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async def trickling(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    loop = asyncio.get_running_loop()
    for handler in (silent, trickling):
        async with server(handler) as port:
            began_s = loop.time()
            assert await reason(f"http://127.0.0.1:{port}/", Fetcher(step_s=0.3, whole_s=0.6)) == "timeout"
            assert loop.time() - began_s < 4


async def test_where_nobody_is() -> None:
    async with server(replying(200, b"{}")) as port:
        pass
    assert await reason(f"http://127.0.0.1:{port}/") == "unreachable"
    assert await reason("http://no-such-host.invalid/") == "unreachable"
    assert await reason("http://" + "a" * 300 + "/") in ("failed", "unreachable")


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::]", "224.0.0.1", "[::ffff:169.254.169.254]"])
async def test_where_it_does_not_go(host: str) -> None:
    assert await reason(f"http://{host}/latest/meta-data") == "forbidden"


async def test_the_certificate_must_be_of_the_name_that_was_asked_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusting = authority.client_context()
    async with server(replying(200, b"{}"), authority.server_context("one", "localhost")) as port:
        fetcher = Fetcher(tls=trusting)
        assert await fetcher.get(f"https://localhost:{port}/") == Answer(200, {})
        await fetcher.close()
        assert await reason(f"https://127.0.0.1:{port}/", Fetcher(tls=trusting)) == "unreachable"
        assert await reason(f"https://localhost:{port}/", Fetcher()) == "unreachable"  # an authority that nobody trusts
