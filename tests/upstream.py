"""A real OpenAI-style upstream on a real socket that does exactly what it is told, misbehaviour included.

A script gets the request and writes to the socket what it likes, when it likes. Everything the upstream saw is kept: requests, which
connection each came over, and when the client (the gateway) closed. An `early` script answers on the head alone, while the body is still on
its way. Over TLS it behaves, and misbehaves, alike.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass
class Seen:
    """One request as the upstream saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int = 0  # the how manyeth of this upstream it came over
    closed_at_s: float = 0.0  # time.monotonic() of the gateway's closing, 0 where it has not
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # the gateway closed this connection
    over: asyncio.Event = field(default_factory=asyncio.Event)  # the script has run to its end

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    async def read_body(self, reader: asyncio.StreamReader) -> None:
        self.body = await reader.readexactly(int(self.headers.get("content-length", 0)))

    def note_closed(self) -> None:
        self.closed_at_s = self.closed_at_s or time.monotonic()
        self.closed.set()


class Wire:
    """What a script writes to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        if self.writer.transport.is_closing():  # uvloop raises RuntimeError where asyncio's own loop says nothing
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, content_type: str = "application/json", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def bytewise(self, data: bytes) -> None:
        """Every byte on its own, as far as the kernel does not join them again."""
        for at in range(len(data)):
            if self.writer.transport.is_closing():
                raise ConnectionResetError
            self.writer.write(data[at : at + 1])
            if at % 32 == 31:
                await asyncio.sleep(0)
        await self.writer.drain()

    async def answer(self, value: Any, status: int = 200, content_type: str = "application/json", **headers: str) -> None:
        body = value if isinstance(value, bytes) else orjson.dumps(value)
        await self.head(status, content_type, content_length=str(len(body)), **headers)
        await self.send(body)

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def sse_head(self, **headers: str) -> None:
        await self.head(200, "text/event-stream", transfer_encoding="chunked", **headers)

    async def event(self, value: Any) -> None:
        data = value if isinstance(value, bytes) else orjson.dumps(value)
        await self.chunk(b"data: " + data + b"\n\n")

    def reset(self) -> None:
        """RST instead of FIN."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()

    async def until_closed(self) -> None:
        """Wait until the gateway closes."""
        while await self._reader.read(65536):
            pass


Script = Callable[[Wire, Seen], Awaitable[None]]


class Upstream:
    """Listens on 127.0.0.1. `script` may be exchanged at any time; it serves one request.

    `early` is run when a head is here and its body is not; if it leaves the connection open, the body is read and nothing more is written.
    """

    def __init__(self, script: Script | None = None, *, early: Script | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.script: Script = script or well_behaved()
        self.early = early
        self._tls = tls
        self.seen: list[Seen] = []
        self.connections = 0
        self.arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def request(self, number: int = 1) -> Seen:
        """Wait for the n-th request."""
        async with self.arrived:
            await asyncio.wait_for(self.arrived.wait_for(lambda: len(self.seen) >= number), 10)
        return self.seen[number - 1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        seen: Seen | None = None  # the request that this connection is about, or was about last
        try:
            while True:
                arriving = await _read_head(reader)
                arriving.connection = number
                if self.early is None:
                    await arriving.read_body(reader)
                seen = arriving
                async with self.arrived:
                    self.seen.append(seen)
                    self.arrived.notify_all()
                await (self.early or self.script)(Wire(reader, writer), seen)
                seen.over.set()
                if writer.is_closing():
                    return
                if self.early is not None:
                    await seen.read_body(reader)
        except (ConnectionError, asyncio.IncompleteReadError):
            if seen is not None:
                seen.note_closed()
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _read_head(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return Seen(method, path, headers, b"")


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def chat_answer(model: str = "up", text: str = "hello there friend") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": USAGE}


def chat_chunk(delta: dict[str, Any], finish: str | None = None, model: str = "up") -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


def well_behaved(words: int = 3, delay_s: float = 0.0) -> Script:
    """Answers as OpenAI does, streamed or not."""

    async def script(wire: Wire, seen: Seen) -> None:
        request = seen.json
        model = request.get("model", "up")
        if not request.get("stream"):
            await wire.answer(chat_answer(model))
            return
        await wire.sse_head()
        await wire.event(chat_chunk({"role": "assistant", "content": ""}, model=model))
        for number in range(words):
            if delay_s:
                await asyncio.sleep(delay_s)
            await wire.event(chat_chunk({"content": f"w{number} "}, model=model))
        await wire.event(chat_chunk({}, "stop", model=model))
        if (request.get("stream_options") or {}).get("include_usage"):
            await wire.event({**chat_chunk({}, model=model), "choices": [], "usage": USAGE})
        await wire.event(b"[DONE]")
        await wire.end()

    return script
