"""The mock upstream: an OpenAI-shaped server as cheap as a Python process can be, and it counts what it saw.

    python -m bench.upstream --port 9000

What a request gets is written in its marker (`bench.payload`). A request without one, from a curl line or
an SDK, is read as JSON: `stream` and `stream_options` count, and a model name such as `stream-200-5ms` sets
chunks and interval. GET /stats returns the counters of `Tally`, POST /release gives every held stream
(marker mode `h`) its next chunk. HTTP/1.1 only, no pipelining, no TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import resource
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

from bench.payload import (
    BROKEN,
    DONE,
    FAILED,
    HELD,
    MARKER,
    RESET,
    STREAMED,
    UNSTREAMED,
    Ask,
    answer_body,
    chunk,
    embedding_body,
    error_body,
    usage_chunk,
)

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: bench\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
JSON_HEAD = (
    b"HTTP/1.1 %d %s\r\nserver: bench\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)
REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 429: b"Too Many Requests", 500: b"Internal Server Error"}
GOLDEN = 0.6180339887  # multiples of it spread evenly: streams that start together do not beat together
NAME_KNOBS = re.compile(r"stream-(\d+)-(\d+)(us|ms)$")


@dataclass(slots=True)
class Tally:
    """What the mock has seen since it started. The driver's own count must agree, or requests were lost or doubled."""

    connections: int = 0
    open_connections: int = 0
    answers: int = 0
    streams: int = 0
    streams_done: int = 0
    streams_aborted: int = 0
    chunks: int = 0
    others: int = 0
    refused: int = 0
    embeddings: int = 0
    failed: int = 0
    resets: int = 0
    broken: int = 0
    answers_aborted: int = 0
    running: int = 0  # delayed answers that are under way, and the most there were at once
    most_running: int = 0


@dataclass(slots=True)
class Mock:
    """The state that all connections share: counters, defaults for requests without a marker, held streams."""

    tally: Tally
    default_chunks: int
    default_interval_us: int
    held: set[Stream]
    connections: set[Connection] = field(default_factory=set)

    def close_idle(self) -> None:
        """Close every connection on which nothing has happened since the last call, as engines do after some seconds."""
        for connection in list(self.connections):
            connection.close_if_idle()


def framed(data: bytes) -> bytes:
    """One HTTP chunk around `data`."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Stream:
    """One SSE answer. Each chunk is one write of its own, at a fixed beat; the first gap is shorter, so that streams are out of step."""

    __slots__ = ("_ask", "_due_s", "_loop", "_mock", "_owner", "_sent", "_timer", "_transport")

    def __init__(self, mock: Mock, owner: Connection, transport: asyncio.Transport, ask: Ask) -> None:
        self._mock, self._owner, self._transport, self._ask = mock, owner, transport, ask
        self._loop = asyncio.get_running_loop()
        self._sent = 0
        self._due_s = self._loop.time() - ask.interval_us / 1e6 * (ask.rid * GOLDEN % 1.0)
        self._timer: asyncio.Handle | None = None
        mock.tally.streams += 1

    def start(self) -> None:
        """Send the head and the first chunk in one write, then keep the beat (or wait to be released)."""
        self._write(STREAM_HEAD)
        if self._sent < self._ask.chunks:
            self._wait()

    def step(self) -> None:
        """Send the next chunk, unless the reader is slow: then the beat goes on without it."""
        if not self._owner.paused:
            self._write(b"")
        if self._sent < self._ask.chunks:
            self._wait()

    def stop(self) -> None:
        """The reader has gone."""
        self._mock.tally.streams_aborted += 1
        self._mock.held.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        if self._ask.mode == HELD:
            self._mock.held.add(self)
        elif self._ask.interval_us == 0:
            self._timer = self._loop.call_soon(self.step)
        else:
            self._due_s += self._ask.interval_us / 1e6
            self._timer = self._loop.call_at(self._due_s, self.step)

    def _write(self, before: bytes) -> None:
        index, ask = self._sent, self._ask
        if ask.mode == BROKEN and index == ask.chunks - 1:
            self._sent = ask.chunks
            self._owner.break_off(ask.rid)
            return
        self._sent = index + 1
        self._mock.tally.chunks += 1
        if self._sent < ask.chunks:
            self._transport.write(before + framed(chunk(ask.rid, index, False)))
            return
        usage = framed(usage_chunk(ask.rid, ask.chunks)) if ask.include_usage else b""
        self._mock.tally.streams_done += 1
        self._mock.held.discard(self)
        self._transport.write(before + framed(chunk(ask.rid, index, True)) + usage + framed(DONE) + b"0\r\n\r\n")
        self._owner.answered()


class Connection(asyncio.Protocol):
    """One client connection: finds whole requests by hand and answers them."""

    __slots__ = ("_buffer", "_close", "_idle_at", "_later", "_mock", "_need_bytes", "_served", "_stream", "_transport", "paused")
    _transport: asyncio.Transport

    def __init__(self, mock: Mock) -> None:
        self._mock = mock
        self._buffer = bytearray()
        self._need_bytes = 0
        self._stream: Stream | None = None
        self._close = False
        self._later: asyncio.TimerHandle | None = None
        self._served = 0
        self._idle_at = -1
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class derives from nothing
        self._mock.tally.connections += 1
        self._mock.tally.open_connections += 1
        self._mock.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._mock.tally.open_connections -= 1
        self._mock.connections.discard(self)
        if self._later is not None:
            self._later.cancel()
            self._later = None
            self._mock.tally.running -= 1
            self._mock.tally.answers_aborted += 1
        if self._stream is not None:
            self._stream.stop()
            self._stream = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need_bytes:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        while data:
            used_bytes = self._take(data)
            if not used_bytes:
                self._buffer += data
                return
            data = data[used_bytes:]

    def close_if_idle(self) -> None:
        if self._stream is None and self._later is None and not self._buffer and self._served == self._idle_at:
            self._transport.close()
        self._idle_at = self._served

    def break_off(self, rid: int) -> None:
        """End in the middle of a stream: every other time with a reset, else with a close."""
        self._mock.tally.broken += 1
        self._stream = None
        self._transport.abort() if rid % 2 else self._transport.close()

    def answered(self) -> None:
        """The answer under way is complete."""
        self._stream = None
        self._served += 1
        if self._close:
            self._transport.close()

    def _take(self, data: bytes) -> int:
        """Answer the request at the start of `data`; returns its length, 0 if it is not whole yet."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._need_bytes = 0
            return 0
        head = data[: end + 2]
        lowered = head.lower()
        start = end + 4
        at = lowered.find(b"content-length:")
        if at >= 0:
            stop = start + int(lowered[at + 15 : lowered.find(b"\r\n", at)])
            self._need_bytes = stop
            body = data[start:stop] if len(data) >= stop else None
        elif b"transfer-encoding: chunked" in lowered:
            self._need_bytes = 0
            body, stop = dechunked(data, start)
        else:
            body, stop = b"", start
        if body is None:
            if b"100-continue" in lowered and not self._buffer:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return 0
        self._close = b"connection: close" in lowered
        self._answer(head, body)
        return stop

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith((b"POST /v1/chat/completions", b"POST /v1/embeddings")):
            found = MARKER.search(body)
            if head.startswith(b"POST /v1/embeddings"):
                self._embed(body, found)
                return
            if found is None:
                self._answer_unmarked(body)
                return
            rid, mode, chunks, interval_us = found.groups()
            usage = mode != b"u" and b"include_usage" in body
            self._chat(Ask(int(rid), mode.decode(), int(chunks), int(interval_us), usage))
            return
        self._mock.tally.others += 1
        status, document = self._side_door(head, body)
        self._reply(status, json.dumps(document).encode())

    def _embed(self, body: bytes, found: re.Match[bytes] | None) -> None:
        self._mock.tally.embeddings += 1
        self._reply(200, embedding_body(int(found[1])) if found else json.dumps(embeddings(json.loads(body))).encode())

    def _fail(self, ask: Ask) -> None:
        """Answer with the status that was asked for, or not at all."""
        if ask.mode == RESET:
            self._mock.tally.resets += 1
            self._transport.abort()
            return
        self._mock.tally.failed += 1
        self._reply(ask.chunks, error_body(ask.rid, ask.chunks))

    def _chat(self, ask: Ask) -> None:
        if ask.mode in (FAILED, RESET):
            self._fail(ask)
            return
        if ask.mode != UNSTREAMED:
            self._stream = Stream(self._mock, self, self._transport, ask)
            self._stream.start()
            return
        self._mock.tally.answers += 1
        if ask.interval_us:
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(ask.interval_us / 1e6, self._reply_late, answer_body(ask.rid))
            tally = self._mock.tally
            tally.running += 1
            tally.most_running = max(tally.most_running, tally.running)
        else:
            self._reply(200, answer_body(ask.rid))

    def _answer_unmarked(self, body: bytes) -> None:
        try:
            ask = self._read_ask(json.loads(body))
        except (ValueError, AttributeError):
            self._mock.tally.refused += 1
            error = {"message": "the body is not a JSON object", "type": "invalid_request_error", "param": None, "code": None}
            self._reply(400, json.dumps({"error": error}).encode())
            return
        self._chat(ask)

    def _read_ask(self, request: dict[str, object]) -> Ask:
        """The ask of a request without a marker, from its fields and its model name."""
        rid = self._mock.tally.answers + self._mock.tally.streams
        if request.get("stream") is not True:
            return Ask(rid)
        options = request.get("stream_options")
        usage = isinstance(options, dict) and options.get("include_usage") is True
        knobs = NAME_KNOBS.search(str(request.get("model")))
        if knobs is None:
            return Ask(rid, STREAMED, self._mock.default_chunks, self._mock.default_interval_us, usage)
        interval_us = int(knobs[2]) * (1000 if knobs[3] == "ms" else 1)
        return Ask(rid, STREAMED, int(knobs[1]), interval_us, usage)

    def _side_door(self, head: bytes, body: bytes) -> tuple[int, dict[str, object]]:
        route = head.split(b" HTTP/", 1)[0].decode("latin-1")
        doors: dict[str, Callable[[], dict[str, object]]] = {
            "GET /health": lambda: {"status": "ok"},
            "GET /stats": lambda: asdict(self._mock.tally),
            "GET /v1/models": lambda: {"object": "list", "data": [{"id": "bench", "object": "model", "owned_by": "bench"}]},
            "GET /get_model_info": lambda: {"model_path": "bench", "is_generation": True},
            "GET /get_server_info": lambda: {"model_id": "bench", "served_model_name": "bench"},
            "POST /release": self._release,
        }
        door = doors.get(route)
        return (200, door()) if door is not None else (404, {"error": {"message": "no such route"}})

    def _release(self) -> dict[str, object]:
        held = list(self._mock.held)
        self._mock.held.clear()
        for stream in held:
            stream.step()
        return {"released": len(held)}

    def _reply_late(self, body: bytes) -> None:
        self._later = None
        self._mock.tally.running -= 1
        self._reply(200, body)

    def _reply(self, status: int, body: bytes) -> None:
        self._transport.write(JSON_HEAD % (status, REASONS[status], len(body)) + body)
        self.answered()


def dechunked(data: bytes, at: int) -> tuple[bytes | None, int]:
    """The chunked body that starts at `at` and the offset behind it; (None, 0) if it is not whole yet."""
    parts: list[bytes] = []
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None, 0
        size = int(data[at:line_end].split(b";")[0], 16)
        at = line_end + 2 + size + 2
        if len(data) < at:
            return None, 0
        if size == 0:
            return b"".join(parts), at
        parts.append(data[line_end + 2 : at - 2])


def embeddings(request: dict[str, object]) -> dict[str, object]:
    """A small embedding per input, as floats or base64, with usage."""
    inputs = request.get("input")
    count = len(inputs) if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int) else 1
    vector = [0.125 * number for number in range(8)]
    as_text = request.get("encoding_format") == "base64"
    value: object = base64.b64encode(struct.pack("<8f", *vector)).decode() if as_text else vector
    data = [{"object": "embedding", "index": index, "embedding": value} for index in range(count)]
    usage = {"prompt_tokens": 4 * count, "total_tokens": 4 * count}
    return {"object": "list", "model": "bench", "data": data, "usage": usage}


async def serve(host: str, ports: list[int], mock: Mock, idle_close_s: float) -> None:
    """Serve until cancelled. Connections that idle for one to two times `idle_close_s` are closed; 0 = never."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: Connection(mock), host, port, backlog=4096) for port in ports]
    while servers:
        await asyncio.sleep(idle_close_s or 3600)
        if idle_close_s:
            mock.close_idle()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.upstream", description="A cheap OpenAI-shaped upstream that counts.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, action="append", help="may be given several times")
    parser.add_argument("--idle-close-s", type=float, default=0.0, help="close idle connections after this to twice this; 0 = never")
    parser.add_argument("--chunks", type=int, default=20, help="chunks of a stream whose request names none")
    parser.add_argument("--interval-us", type=int, default=0, help="and the time between them; 0 = as fast as it goes")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    mock = Mock(Tally(), options.chunks, options.interval_us, set())
    try:
        uvloop.run(serve(options.host, options.port, mock, options.idle_close_s))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
