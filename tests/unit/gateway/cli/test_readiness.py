"""What the supervisor hears from its own server while it starts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.cli.readiness import Readiness, readiness


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A server that answers every request with these bytes; its port."""

    async def answer_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(answer_it, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def said(status: int, checks: object) -> bytes:
    return f"HTTP/1.1 {status} .\r\ncontent-type: application/json\r\n\r\n{json.dumps({'checks': checks})}".encode()


@pytest.mark.parametrize(
    ("answer", "heard"),
    [
        (said(200, {"revision": "7", "models": "ready"}), Readiness(True, "")),
        (said(503, {"revision": "7", "models": "loading demo"}), Readiness(False, "loading demo")),
        (said(503, {"server": "draining"}), Readiness(False, "draining")),
        (said(503, ["?"]), Readiness(False, "")),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", None),
        (b"", None),
    ],
)
async def test_an_answer(answer: bytes, heard: Readiness | None) -> None:
    async with answering(answer) as port:
        assert await readiness("127.0.0.1", port, None) == heard


async def test_nobody_there() -> None:
    async with answering(b"") as port:
        pass
    assert await readiness("127.0.0.1", port, None) is None
