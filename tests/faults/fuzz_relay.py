"""Fuzz targets with the whole relay between two sockets that are none: clients' bytes (`edge`), and backends' bytes (`relay`).

`edge`: the requests that the backend sees are those that h11 reads in the client's bytes, byte for byte and no others, and the answers are
one for each, in order. `relay`: what the client is told is one well-framed answer, and what was relayed is what h11 reads in the backend's
bytes, up to its last whole event.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import h11
import orjson
import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from backends.base import Call, Sink
from backends.custom import CustomBackend
from backends.http1 import Connection
from gateway.relay.edge import Edge, edge_class
from tests.faults.fuzz_parsers import HTTP_WORDS, RELAYED, read_answer
from tests.faults.test_fuzz import FakeTransport
from tests.relay_server import RelayServer, relay_server, route, target

CHAT = b'{"model":"m","messages":[{"content":"hi"}]}'
STREAM = CHAT[:-1] + b',"stream":true}'


class Echo:
    """Answers inside `start` with the bytes that it was sent."""

    asks_usage = False
    ready = True
    sent = True
    connect_ms: float | None = None

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def open(self) -> Echo:
        return self

    def start(self, call: Call, sink: Sink) -> None:
        self.calls.append(call)
        answer = orjson.dumps({"got": call.body.hex()})
        if b'"stream":true' in call.body:
            sink.on_head(200, ((b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked")))
            sink.on_data(b"data: " + answer + b"\n\ndata: [DONE]\n\n")
        else:
            sink.on_head(200, ((b"content-type", b"application/json"),))
            sink.on_data(answer)
        sink.on_end(False)

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def abort(self) -> None:
        pass

    async def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it stands in what was written. `complete`: as its framing says."""

    status: int
    close: bool
    body: bytes
    complete: bool


def read_answers(written: bytes) -> list[Answer]:
    """All answers, strictly: anything that is not framed as HTTP/1.1 fails."""
    found: list[Answer] = []
    while written:
        head, end, rest = written.partition(b"\r\n\r\n")
        assert end, f"half a head: {head!r}"
        match = re.match(rb"HTTP/1\.1 (\d\d\d) [^\r\n]*\r\n", head + b"\r\n")
        assert match, head
        status = int(match[1])
        if status == 100:
            written = rest
            continue
        lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in lines}
        close = headers.get(b"connection", b"").lower() == b"close"
        if b"content-length" in headers:
            assert b"transfer-encoding" not in headers, head
            length = int(headers[b"content-length"])
            body, written, complete = rest[:length], rest[length:], len(rest) >= length
        elif headers.get(b"transfer-encoding") == b"chunked":
            body, written, complete = _chunks(rest)
        else:
            body, written, complete = rest, b"", True
        found.append(Answer(status, close, body, complete))
    return found


def _chunks(data: bytes) -> tuple[bytes, bytes, bool]:
    body = b""
    while data:
        line, end, data = data.partition(b"\r\n")
        assert end, line
        size = int(line, 16)
        body += data[:size]
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]
        if size == 0:
            return body, data, True
    return body, b"", False


@dataclass(frozen=True, slots=True)
class Read:
    """One request as h11 reads it. `complete`: its body is there."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


# Several blanks in a request line: RFC 9112 section 3 lets a recipient take them, and llhttp does. h11 would not.
h11._readers.request_line_re = re.compile(
    h11._readers.request_line_re.pattern.replace(b" (?P<target>", b" +(?P<target>").replace(b" HTTP", b" +HTTP")
)


def read_requests(data: bytes) -> tuple[list[Read], bool]:
    """h11's reading of a client's bytes: the complete requests up to the first fault; and was there none, with nothing left over?

    Empty lines before a request are passed over (RFC 9112 section 2.2).
    """
    found: list[Read] = []
    while True:
        data = data.lstrip(b"\r\n")
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        try:
            request = _read_request(connection, data)
        except h11.RemoteProtocolError:
            return found, False
        if request is None:
            return found, not data
        found.append(request)
        if connection.our_state is h11.MUST_CLOSE:
            return found, True
        data = connection.trailing_data[0]


def _read_request(connection: h11.Connection, data: bytes) -> Read | None:
    """One request, answered so that h11 says whether another may follow. None where it is not complete."""
    connection.receive_data(data)
    head: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            return Read(head.method, head.target, list(head.headers), body)
        else:
            return None


class _House:
    """A relay server without sockets, on a loop of its own."""

    def __init__(self, *backends: Any) -> None:
        self._runner = asyncio.Runner()
        self._context = relay_server(route([target(backend, model="m", id=f"b{n}") for n, backend in enumerate(backends, 1)]))
        self.server: RelayServer = self._runner.run(self._context.__aenter__())
        self.config = uvicorn.Config(Starlette(), http=edge_class(self.server.relay), ws="none", lifespan="off", log_config=None)
        self.config.load()
        self.head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.server.key}\r\n".encode()

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()

    def check(self, pieces: list[bytes]) -> None:
        self._runner.run(self._check(pieces))

    async def _check(self, pieces: list[bytes]) -> None:
        raise NotImplementedError

    def edge(self, state: ServerState) -> tuple[Edge, FakeTransport]:
        made = self.config.http_protocol_class(self.config, state, {}, asyncio.get_running_loop())  # type: ignore[call-arg, arg-type]
        edge, transport = cast(Edge, made), FakeTransport()
        edge.connection_made(transport)
        return edge, transport

    async def calm(self, state: ServerState, transport: FakeTransport) -> None:
        """Until nothing more is written."""
        quiet, before = 0, -1
        for _ in range(500):
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(transport.written) == before and not state.tasks else 0
            before = len(transport.written)
            if quiet == 3:
                return

    async def end(self, state: ServerState, edge: Edge, transport: FakeTransport) -> None:
        """The connection is lost; nothing may be left of it."""
        edge.connection_lost(ConnectionResetError() if transport.closed else None)
        await self.calm(state, transport)
        relay, ledger = self.server.relay, self.server.ledger
        assert not state.connections
        assert relay.held_bytes == 0
        assert relay.meter.running() == 0
        assert len(ledger.begun) == len(ledger.ended), "begun and not ended"
        ledger.begun.clear()
        ledger.ended.clear()


class Client(_House):
    """Clients' bytes, damaged."""

    name = "edge"
    words: ClassVar[list[bytes]] = HTTP_WORDS
    joins = 3

    def __init__(self) -> None:
        self._backend = Echo()
        super().__init__(self._backend)
        head, length = self.head, b"content-length: %d\r\n\r\n" % len(CHAT)
        inner = head + length + CHAT
        chunked = b"transfer-encoding: chunked\r\n\r\n7;a=b\r\n" + CHAT[:7] + b"\r\n%x\r\n" % len(CHAT[7:]) + CHAT[7:] + b"\r\n0\r\n"
        self.corpus = [
            inner,
            head + b"content-length: %d\r\n\r\n" % len(STREAM) + STREAM,
            head + chunked + b"\r\n",
            head + chunked + b"authorization: x\r\nx-trailer: y\r\n\r\n",
            head + b"expect: 100-continue\r\n" + length + CHAT,
            head + b"connection: upgrade\r\nupgrade: h2c\r\n" + length + CHAT,
            head.replace(b"Bearer", b"Basic") + length + CHAT,
            head + b"content-length: 4\r\n\r\nnope",
            head + b"content-length: %d\r\n\r\n" % len(inner) + inner,
            head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner),
            head + b"connection: close\r\n" + length + CHAT,
            head.replace(b"HTTP/1.1", b"HTTP/1.0") + length + CHAT,
            b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n",
            b"POST /nothing HTTP/1.1\r\nhost: x\r\n" + length + CHAT,
        ]

    async def _check(self, pieces: list[bytes]) -> None:
        state = ServerState()
        edge, transport = self.edge(state)
        self._backend.calls.clear()
        for piece in pieces:
            if transport.closed:
                break
            edge.data_received(piece)
            await self.calm(state, transport)
        answers = read_answers(b"".join(transport.written))
        closing = transport.closed or edge._discarding or edge._closing
        await self.end(state, edge, transport)
        data = b"".join(pieces)
        read, clean = read_requests(data)
        served = 0
        for number, answer in enumerate(answers):
            assert answer.complete, "an answer without its end"
            assert not answer.close or number == len(answers) - 1, "an answer behind the last one"
            if answer.status == 200:
                served += 1
                assert number < len(read), f"answer {number + 1} to a request that is none"
                self._same(answer.body, read[number])
        assert served == len(self._backend.calls), f"{served} answers, {len(self._backend.calls)} calls"
        if data.lower().count(b"connection:") > sum(name == b"connection" for request in read for name, _ in request.headers):
            return  # in a trailer, llhttp takes it for the end of the connection: what follows is read by nobody
        if clean:
            assert len(answers) <= len(read), f"{len(answers)} answers to {len(read)} requests"
            assert closing or len(answers) == len(read), f"{len(answers)} answers to {len(read)} requests"

    def _same(self, answer: bytes, request: Read) -> None:
        got = orjson.loads(answer.removeprefix(b"data: ").partition(b"\n")[0])["got"]
        assert bytes.fromhex(got) == request.body, (bytes.fromhex(got), request.body)
        assert request.method == b"POST"
        assert request.target.partition(b"?")[0] in RELAYED, request.target
        key = self.server.key.encode()
        assert any(name in (b"authorization", b"x-api-key", b"api-key") and key in value for name, value in request.headers)


class Upstream(_House):
    """Backends' bytes, damaged, on their way through the whole relay. The first piece may hold no less than one byte."""

    name = "relay"
    joins = 1
    words: ClassVar[list[bytes]] = [
        *HTTP_WORDS,
        b"data: ",
        b"\n\n",
        b"data: [DONE]\n\n",
        b'{"error":{"message":"x"}}',
        b'"usage":{"prompt_tokens":1}',
        b'"model":"m"',
    ]

    def __init__(self) -> None:
        self._pool = CustomBackend("http://127.0.0.1:9/v1")
        super().__init__(self._pool)
        sse = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        events = [
            b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"model":"m"}\n\n',
            b": note\n\n",
            'data: {"choices":[{"index":0,"delta":{"content":"né 😀"}}]}\r\n\r\n'.encode(),
            b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
            b"data: [DONE]\n\n",
        ]
        body = b"".join(events)
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"
        good = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
        json = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        self.corpus = [
            sse + b"transfer-encoding: chunked\r\n\r\n" + chunks,
            sse + b"content-length: %d\r\n\r\n" % len(body) + body,
            sse.replace(b"1.1", b"1.0") + b"\r\n" + body,
            json + b"content-length: %d\r\n\r\n" % len(good) + good,
            json + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(good), good),
            b"HTTP/1.1 100 Continue\r\n\r\n" + json + b"content-length: %d\r\n\r\n" % len(good) + good,
            b'HTTP/1.1 429 Slow\r\nretry-after: 3\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{"error":"x"}',
            b"HTTP/1.1 500 Oops\r\ncontent-length: 5\r\n\r\n<html",
        ]

    async def _check(self, pieces: list[bytes]) -> None:
        if not pieces:
            return
        data = b"".join(pieces)
        state = ServerState()
        edge, transport = self.edge(state)
        connection = Connection(self._pool)
        connection.connection_made(FakeTransport())
        self._pool.give(connection, time.monotonic())
        body = STREAM if len(data) % 4 else CHAT
        edge.data_received(self.head + b"content-length: %d\r\n\r\n" % len(body) + body)
        for piece in pieces:
            if connection.transport.is_closing():
                break
            connection.data_received(piece)
            await asyncio.sleep(0)
        connection.connection_lost(None)
        await self.calm(state, transport)
        answers = read_answers(b"".join(transport.written))
        await self.end(state, edge, transport)
        assert len(answers) == 1, f"{len(answers)} answers"
        assert not self._pool.connections
        self._same(answers[0], data)

    def _same(self, answer: Answer, data: bytes) -> None:
        assert answer.complete, "an answer without its end"
        if answer.status >= 300:
            assert orjson.loads(answer.body)["error"].keys() == {"message", "type", "param", "code"}
            return
        read = _decoded(data)
        if read is None:
            return
        if not answer.body.endswith((b"\n\n", b"\n\r\n", b"\r\r")):
            assert answer.body == read, (answer.body, read)
            return
        relayed, end = answer.body.removesuffix(b"data: [DONE]\n\n"), answer.body.rfind(b'data: {"error":{"message":"The backend')
        if end >= 0 and len(relayed) == len(answer.body):
            relayed = relayed[:end]
        if b"usage" in read:
            return  # an event may be kept from the client
        assert read.startswith(relayed.rstrip(b"\r\n")), (relayed, read)


def _decoded(data: bytes) -> bytes | None:
    """The body in a backend's bytes; None where h11 finds no whole one."""
    read = read_answer(data)
    return read[1] if read is not None else None
