"""The driver's end of one keep-alive connection, and the check of every answer against the bytes it must have.

An answer that is strict must equal what the upstream sent, byte for byte (chunk sizes of the transfer coding
aside). Peers that parse and re-dump JSON cannot pass that, so for them a loose check asks only for the right
request id, every chunk number in order and `[DONE]` last. An answer that fails is an error of the round.
"""

from __future__ import annotations

import asyncio
import re
from time import perf_counter
from typing import Protocol, cast

import httptools

from bench.payload import DONE, UNSTREAMED, Ask, answer_body, stream_body

NUMBERED = re.compile(rb'"content":\s*"n(\d{6})')


class Answer:
    """What one request must be answered with, and what has come so far.

    Times are perf_counter's: the clock of uvloop counts whole milliseconds only.
    """

    __slots__ = ("_at", "_expected", "_kept", "ask", "events", "failed", "first_s", "sent_s")

    def __init__(self, ask: Ask, strict: bool) -> None:
        self.ask = ask
        self.failed = ""
        self.events = 0
        self.sent_s = 0.0
        self.first_s = 0.0
        self._at = 0
        self._expected = (answer_body(ask.rid) if ask.mode == UNSTREAMED else stream_body(ask)) if strict else None
        self._kept = bytearray()

    def feed(self, body: bytes) -> int:
        """Take the next bytes of the body; returns how many events they end (an unstreamed body counts as one)."""
        end = self._at + len(body)
        if self._expected is None:
            self._kept += body
        elif not self.failed and self._expected[self._at : end] != body:
            self.failed = f"byte {self._at} and on is not what the upstream sent: {body[:120]!r}"
        self._at = end
        ended = 1 if self.ask.mode == UNSTREAMED else body.count(b"\n\n")
        self.events += ended
        return ended

    def finish(self, status: int) -> str:
        """The answer is complete: what is wrong with it, or nothing."""
        if status != 200:
            return f"status {status}"
        if self._expected is not None:
            if not self.failed and self._at != len(self._expected):
                return f"{self._at} bytes of {len(self._expected)}"
            return self.failed
        return self._judge_loosely(bytes(self._kept))

    def _judge_loosely(self, body: bytes) -> str:
        if self.ask.mode == UNSTREAMED:
            return "" if b"rid-%08d" % self.ask.rid in body else f"not the answer to this request: {body[:120]!r}"
        numbers = [int(number) for number in NUMBERED.findall(body)]
        if numbers != list(range(self.ask.chunks)):
            return f"{len(numbers)} chunks of {self.ask.chunks}, or out of order"
        return "" if body.endswith(DONE) else "the stream does not end with [DONE]"


class Owner(Protocol):
    """Who drives a connection and is told what happened on it."""

    def on_event(self, connection: Connection, answer: Answer) -> None:
        """`answer` has grown by a whole event or more."""

    def on_answer(self, connection: Connection, answer: Answer, problem: str) -> None:
        """`answer` is over; `problem` is empty if it was right. The connection is free unless it is closed."""

    def on_lost(self, connection: Connection) -> None:
        """The connection is gone, whoever closed it. An answer that was under way has been reported before."""


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with one request under way at most."""

    __slots__ = ("_owner", "_parser", "_transport", "answer", "closed")
    _transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self.answer: Answer | None = None
        self.closed = False

    def send(self, answer: Answer, request: bytes) -> None:
        """Send a whole request, head and body, and expect `answer`."""
        self.answer = answer
        answer.sent_s = perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        self.closed = True
        self._transport.close()

    def abort(self) -> None:
        """Close without farewell (a reset, where something is under way)."""
        self.closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class derives from nothing

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._end("the connection was closed in the middle of an answer")
        self._owner.on_lost(self)

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            self._owner.on_answer(self, Answer(Ask(0), False), f"bytes that nobody asked for: {data[:120]!r}")
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")
            self.close()

    def on_body(self, body: bytes) -> None:
        answer = self.answer
        if answer is None:
            return
        if answer.feed(body):
            if not answer.first_s:
                answer.first_s = perf_counter()
            self._owner.on_event(self, answer)

    def on_message_complete(self) -> None:
        answer = self.answer
        if not self._parser.should_keep_alive():  # the server is about to close it
            self.close()
        if answer is not None:
            self.answer = None
            self._owner.on_answer(self, answer, answer.finish(self._parser.get_status_code()))

    def _end(self, problem: str) -> None:
        answer = self.answer
        if answer is not None:
            self.answer = None
            self._owner.on_answer(self, answer, problem)


def request_head(host: str, port: int, key: str, path: str = "/v1/chat/completions") -> bytes:
    """The head of a request as a %-template that takes the length of the body."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "User-Agent: bench",
        "Accept: */*",
        "Content-Type: application/json",
        *([f"Authorization: Bearer {key}"] if key else []),
        "Content-Length: %d",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
