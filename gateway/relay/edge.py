"""The client's side of the relay: a uvicorn HTTP protocol that takes the relay routes and hands all else to ASGI.

One `Edge` per connection. Heads are frozen into a `Request` when they are complete; requests of one connection are answered in order, one
at a time. The traps that this form must get right are named where they are handled (docs/decisions/0002-relay-below-asgi.md).

uvicorn's own bookkeeping (connections, tasks, lifespan) is kept; of its protocol the parsing callbacks, the pipeline, the timers and the
400 answer are replaced. uvicorn's minor version is pinned, and tests/contract/test_uvicorn.py holds what is relied on here.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
import time
import urllib.parse
from collections import deque
from email.utils import formatdate
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
import structlog
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from auth.credential import Shown
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    UnsupportedEncoding,
)
from gateway.relay.flow import Flow
from gateway.relay.operations import CONTROL, ROUTES, Operation
from gateway.wire import heads

if TYPE_CHECKING:
    from gateway.runtime import Relay

logger = structlog.get_logger(__name__)

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
KEEP_ALIVE_S: Final = 75.0
HEAD_S: Final = 30.0  # from the first byte of a head to its end
BODY_S: Final = 60.0  # between two reads of a body; for the whole of it there is `Relay.timeout_body_s`
DISCARD_S: Final = 2.0  # how long the rest of a refused body is read and dropped before the connection is closed
DISCARD_BYTES: Final = 1_000_000  # a refused body up to this is read to its end, so that the connection can be kept
MAX_WAITING_BYTES: Final = 1_000_000  # of a body whose request waits behind a running one: its credential has not been looked at
MAX_PIPELINED: Final = 16
FRAMING_BYTES: Final = 256_000  # chunk sizes, extensions and trailers of one body may take this, and FRAMING_RATIO times the body itself
FRAMING_RATIO: Final = 16
TICK_S: Final = 0.1
_RESET = struct.pack("ii", 1, 0)  # linger for no time: closing sends RST

# Client headers that a backend may see. Everything else, credentials above all, stays here.
_FORWARDED: Final = frozenset((b"traceparent", b"tracestate", b"openai-beta", b"anthropic-version", b"anthropic-beta", b"accept-language"))
_EXPOSED: Final = (
    b"access-control-expose-headers: x-request-id, retry-after, retry-after-ms, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    b"x-gateway-content-log\r\n"
)


class Request:
    """One request as its head said. `flow` is None for requests that ASGI answers (`cycle` then)."""

    __slots__ = (
        "body",
        "body_bytes",
        "body_due_s",
        "client_request_id",
        "complete",
        "content_length",
        "content_type",
        "cycle",
        "expects_continue",
        "flow",
        "forwarded",
        "headers",
        "held_bytes",
        "http10",
        "id",
        "keep_alive",
        "opened",
        "operation",
        "origin",
        "raw_bytes",
        "refusal",
    )

    id: str
    operation: Operation
    headers: list[tuple[bytes, bytes]]
    http10: bool
    keep_alive: bool
    content_length: int  # -1 = not declared
    content_type: bytes
    expects_continue: bool
    origin: bytes
    client_request_id: str | None
    forwarded: tuple[tuple[bytes, bytes], ...]
    flow: Flow | None
    cycle: RequestResponseCycle | None

    def __init__(self) -> None:
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.body_due_s = 0.0  # when the whole of it must be here, from its turn on; infinity = whenever
        self.raw_bytes = 0  # of the reads that lay wholly within its body
        self.held_bytes = 0
        self.opened = False  # its turn has come
        self.complete = False
        self.cycle = None
        self.flow = None
        self.refusal: GatewayError | None = None


class Edge(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, relay: Relay, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relay = relay
        self.deadline_s = 0.0  # when the running flow, or whatever else is under way, wants to be called: time.monotonic(), 0 = never
        self._queue: deque[Request] = deque()  # in order of arrival; the first is being answered
        self._newest: Request | None = None  # its body is being read
        self._in_head = False
        self._head_bytes = 0
        self._read_bytes = 0  # of the read that is being parsed
        self._begun = 0  # messages that began in it
        self._discarding = False
        self.write_paused = False
        self._unsent_bytes = 0  # in the write buffer when the deadline of an answered request passed
        self._closing = False  # no further request will be answered
        self.shown = Shown()
        # As uvicorn's own attributes of these names, which the compiler of this file cannot see: each look at one cost ten times as much.
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []  # headers, with lower-case names
        self._parser: Any = self.parser
        self._state: Any = self.server_state

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._transport: asyncio.Transport = transport
        self.deadline_s = time.monotonic() + KEEP_ALIVE_S

    # reading

    def data_received(self, data: bytes) -> None:
        discarding = self._discarding
        if discarding:
            return
        reading = self._newest
        aligned = reading is None and not self._in_head
        self._begun = 0
        self._read_bytes = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            if not self._discarding:
                self._without_upgrade(data[error.args[0] :])
            return
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
            if self._discarding:
                pass
            elif cause is None or isinstance(cause, httptools.HttpParserError):
                self._garbage()
            else:
                logger.error("edge failed", exc_info=cause)
                self._refuse_head(InternalError("The gateway failed on this request; its log says why."))
            return
        if self._in_head:
            if not self._begun or (self._begun == 1 and aligned):  # else a part of this read belongs to what went before
                self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head(_head_too_large())
        elif reading is not None and self._newest is reading:
            reading.raw_bytes += len(data)
            if reading.raw_bytes - FRAMING_BYTES > reading.body_bytes * FRAMING_RATIO:
                self._transport.abort()

    def on_message_begin(self) -> None:
        self._url = b""
        self._fields = []
        self._in_head = True
        self._head_bytes = 0
        self._begun += 1
        if not self._queue:
            self.deadline_s = self.relay.clock.now_s + HEAD_S

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # afterwards it is a trailer: it must never be read as a header
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        if self._discarding or parser.should_upgrade():  # an upgrade's body is left unread by the parser: see `_without_upgrade`
            return
        request = Request()
        self._newest = request
        version = parser.get_http_version()
        request.http10 = version != "1.1"
        request.keep_alive = not request.http10 and parser.should_keep_alive()
        operation = ROUTES.get(self._url.partition(b"?")[0]) if parser.get_method() == b"POST" else None
        request.operation = operation or CONTROL
        self._freeze(request)
        if request.http10 and version != "1.0":  # llhttp takes a line without a version for HTTP/0.9, and 2.0 too
            request.refusal = InvalidRequest("The request must be HTTP/1.1 or HTTP/1.0.")
        if operation is None and request.refusal is None:
            self._make_cycle(request)
        self._queue.append(request)
        if len(self._queue) > MAX_PIPELINED:
            request.refusal = Overloaded(f"At most {MAX_PIPELINED} requests may wait on one connection.", retry_after_s=1)
            request.keep_alive = False
            self._discarding = True  # whatever else comes
        if self._queue[0] is request and not self.write_paused:
            self._open(request)

    def _freeze(self, request: Request) -> None:
        """Everything that the relay wants of the head, in one pass. Nothing reads `self._fields` of this request afterwards."""
        request.headers = headers = self._fields
        request.id = next(self.relay.ids)
        request.content_length = -1
        request.content_type = b""
        request.expects_continue = False
        request.origin = b""
        request.client_request_id = None
        forwarded: tuple[tuple[bytes, bytes], ...] = ()
        hosts = 0
        encoded = False
        codings: tuple[bytes, ...] = ()
        for name, value in headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                request.content_length = int(value)
            elif name == b"content-type":
                request.content_type = value
            elif name == b"expect":
                request.expects_continue = value.lower() == b"100-continue" and not request.http10
            elif name == b"origin":
                request.origin = value
            elif name == b"x-request-id":
                request.client_request_id = value[:128].decode("latin-1")
            elif name in _FORWARDED:
                forwarded += ((name, value),)
            elif name == b"content-encoding":
                encoded = value.lower() not in (b"identity", b"")
            elif name == b"transfer-encoding":
                codings += (value.lower(),)
        request.forwarded = forwarded
        refusal: GatewayError | None = None
        if hosts > 1 or (not hosts and not request.http10):
            refusal = InvalidRequest("The request must have exactly one Host header.")
        elif codings and codings != (b"chunked",):  # llhttp looks at the last coding alone; the way to smuggle past one that looks at all
            refusal = InvalidRequest("The only Transfer-Encoding taken is 'chunked', once.")
        elif len(headers) > MAX_HEADERS:
            refusal = HeadersTooLarge(f"The request has more than {MAX_HEADERS} headers.")
        elif self._head_bytes + self._read_bytes > MAX_HEAD_BYTES and self._measured_head() > MAX_HEAD_BYTES:
            refusal = _head_too_large()
        elif request.operation is CONTROL and request.content_length > self.relay.max_body_bytes:
            refusal = BodyTooLarge(f"The request body is larger than the limit of {self.relay.max_body_bytes} bytes.")
        elif encoded and request.operation is not CONTROL:
            refusal = UnsupportedEncoding("The request body must not be compressed: send it without Content-Encoding.")
        if refusal is not None:
            request.refusal = refusal
            request.keep_alive = False

    def _measured_head(self) -> int:
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._fields)

    def on_body(self, body: bytes) -> None:
        request = self._newest
        if request is None:
            return
        request.body_bytes += len(body)
        if request.cycle is not None:
            self._asgi_body(request, request.cycle, body)
            return
        flow, relay = request.flow, self.relay
        if flow is not None and flow.over:
            if request.body_bytes > DISCARD_BYTES:
                self._discard()
            return  # refused: the rest of its body is read and dropped
        request.body.append(body)
        request.held_bytes += len(body)
        relay.held_bytes += len(body)
        if flow is not None:
            self._await_body(request)
            if request.body_bytes > relay.max_body_bytes:
                request.keep_alive = False
                flow.refuse(flow.body_too_large())
            elif relay.held_bytes > relay.max_held_bytes:
                request.keep_alive = False
                flow.refuse(flow.too_much_held())
        elif request.body_bytes > MAX_WAITING_BYTES or relay.held_bytes > relay.max_held_bytes:
            self._transport.abort()  # it waits behind a running request: nobody to tell

    def on_message_complete(self) -> None:
        request = self._newest
        self._newest = None
        if request is None:
            return
        request.complete = True
        cycle = request.cycle
        first = bool(self._queue) and self._queue[0] is request
        if cycle is not None:
            if not cycle.response_complete:
                cycle.more_body = False
                cycle.message_event.set()
            if first:
                self.deadline_s = 0.0  # from here on it is the application's time
        elif first:
            self._body_complete(request)

    # one request after the other

    def _open(self, request: Request) -> None:
        """The request's turn has come."""
        request.opened = True
        total_s = self.relay.timeout_body_s
        request.body_due_s = self.relay.clock.now_s + total_s if total_s else inf
        cycle = request.cycle
        if cycle is not None:
            self.cycle = cycle
            if request.complete:
                self.deadline_s = 0.0
            else:
                self._await_body(request)
            self._start_asgi_task(cycle, self.app)
            return
        flow = request.flow = Flow(self.relay, self, request)
        if request.refusal is not None:
            flow.refuse(request.refusal)
            return
        flow.open()
        if flow.over:
            return
        self._await_body(request)
        if request.expects_continue and not request.complete:
            self._transport.write(heads.CONTINUE)

    def _await_body(self, request: Request) -> None:
        """More of the body is to come: within `BODY_S`, and all of it by `body_due_s`.

        The whole has a fixed time, not a least rate: who means ill keeps to any rate that an honest slow line can, and would hold more and
        more memory for longer and longer; with a fixed time both are bounded. For the largest body it is a least rate all the same, and a
        small one is not held to it. It needs no timer: the deadline of the connection is the earlier of the two.
        """
        due_s = self.relay.clock.now_s + BODY_S
        self.deadline_s = due_s if due_s < request.body_due_s else request.body_due_s

    def _body_late(self, request: Request) -> None:
        """The rest of the body does not come, or not in time: say so, and close."""
        request.keep_alive = False
        error = RequestTimeout("The body of the request did not come in time; send the request again, on a new connection.")
        flow, cycle = request.flow, request.cycle
        if flow is not None:
            flow.refuse(error)
        elif cycle is not None and not cycle.response_started:
            cycle.disconnected = True  # whatever the application says now goes nowhere
            cycle.message_event.set()
            self._refuse_unread(error)
        else:
            self._transport.abort()

    def _body_complete(self, request: Request) -> None:
        flow = request.flow
        if flow is None:
            return
        if flow.over:  # refused before its body was here; now the connection is in step again
            self._next()
            return
        body = b"".join(request.body)
        request.body.clear()
        flow.run(body)

    def _next(self) -> None:
        """The first request is answered and its body is read: on to the next, in a fresh call (never recursive)."""
        request = self._queue.popleft()
        self._release(request)
        if self._closing or self._transport.is_closing():
            return
        self.deadline_s = self.relay.clock.now_s + KEEP_ALIVE_S
        if self._queue:
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Open the request that is first now, once the client has taken most of what was written for those before it."""
        if not self._queue or self._queue[0].opened or self.write_paused or self._transport.is_closing():
            return
        request = self._queue[0]
        self._open(request)
        if request.complete and self._queue and self._queue[0] is request:
            self._body_complete(request)

    def _release(self, request: Request) -> None:
        """The request is over: give back its share of memory, and leave no cycle for the collector."""
        self.drop_body(request)
        request.flow = None

    def drop_body(self, request: Request) -> None:
        """Nobody needs the request's body any more."""
        request.body.clear()
        self.relay.held_bytes -= request.held_bytes
        request.held_bytes = 0

    # writing, for flows

    def write_answer(self, request: Request, status: int, lines: bytes, body: bytes) -> None:
        """A whole answer, and the end of the request."""
        if not request.complete and (request.expects_continue or request.content_length > DISCARD_BYTES):
            request.keep_alive = False
        length = str(len(body)).encode()
        self._transport.write(b"%bcontent-length: %b\r\n\r\n%b" % (self._head(request, status, lines), length, body))
        self._answered(request)

    def write_head(self, request: Request, status: int, lines: bytes, by_close: bool = False) -> None:
        """The head of a stream. `by_close`: it ends with the connection, as it did at the backend: nobody knows whether it is whole."""
        if by_close:
            request.http10 = True
        if request.http10:
            request.keep_alive = False
            self._transport.write(self._head(request, status, lines) + b"\r\n")
        else:
            self._transport.write(self._head(request, status, lines) + b"transfer-encoding: chunked\r\n\r\n")

    def write_piece(self, request: Request, data: bytes) -> None:
        """A piece of a stream."""
        self._transport.write(data if request.http10 else b"%x\r\n%b\r\n" % (len(data), data))

    def write_last(self, request: Request, data: bytes) -> None:
        """The last piece of a stream (may be empty) and its end, in one write."""
        if request.http10:
            self._transport.write(data)
        else:
            self._transport.write(heads.chunk(data) + heads.LAST_CHUNK if data else heads.LAST_CHUNK)
        self._answered(request)

    def cut(self, request: Request) -> None:
        """The answer broke off and cannot say so in its own words: end the connection without the end of the message."""
        self._closing = True
        if request.http10:  # there an orderly end of the connection is the end of the message: reset it
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _head(self, request: Request, status: int, lines: bytes) -> bytes:
        relay = self.relay
        if relay.draining:
            request.keep_alive = False
        head = b"%b%b%bx-request-id: %b\r\n" % (heads.STATUS_LINES[status], relay.clock.date_line, lines, request.id.encode())
        if request.origin:
            head += self._cors(request.origin)
        return head if request.keep_alive else head + heads.CLOSE

    def _cors(self, origin: bytes) -> bytes:
        allowed = self.relay.cors_origins
        if b"*" in allowed:
            return b"access-control-allow-origin: *\r\n" + _EXPOSED
        if origin in allowed:
            return b"access-control-allow-origin: " + origin + b"\r\nvary: origin\r\n" + _EXPOSED
        return b""

    def _answered(self, request: Request) -> None:
        """The answer to the first request is written."""
        self._state.total_requests += 1
        self._unsent_bytes = 0
        if not request.complete:
            self.drop_body(request)
            self.deadline_s = self.relay.clock.now_s + BODY_S
            if not request.keep_alive:
                self._discard()
        elif request.keep_alive:
            self._next()
        else:
            self._closing = True
            self.deadline_s = self.relay.clock.now_s + KEEP_ALIVE_S  # for the client to take what was written
            self._transport.close()

    # the ways a connection goes wrong

    def _garbage(self) -> None:
        """What the client sends is not HTTP."""
        request = self._queue[0] if len(self._queue) == 1 else None
        if request is None or request.complete or request.flow is None:
            self._refuse_head(InvalidRequest("The request is not valid HTTP."))
        elif request.flow.over:
            self._discard()
        else:
            request.keep_alive = False
            request.flow.refuse(InvalidRequest("The request's body is not valid HTTP."))

    def send_400_response(self, msg: str) -> None:
        self._garbage()

    def _refuse_head(self, error: GatewayError) -> None:
        """Refuse a request whose head cannot be read, and close."""
        if self._queue:  # an answer is under way: anything written now would land inside it
            self._transport.abort()
            return
        self._refuse_unread(error)

    def _refuse_unread(self, error: GatewayError) -> None:
        """Refuse what no flow stands for, and close."""
        lines, body = heads.error_answer(error)
        request_id = b"x-request-id: " + next(self.relay.ids).encode() + b"\r\n"
        head = heads.STATUS_LINES[error.status] + self.relay.clock.date_line + lines + request_id + heads.CLOSE
        self._transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self._discard()

    def _discard(self) -> None:
        """Close, but read on for a moment: closing with unread bytes would reset the connection under the answer just written."""
        self._closing = self._discarding = True
        self.deadline_s = self.relay.clock.now_s + DISCARD_S
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.flow.resume_reading()

    def _without_upgrade(self, rest: bytes) -> None:
        """An Upgrade that we do not do (h2c, websocket): the request is an ordinary one. Replay its head without it, then what follows."""
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        if method == b"CONNECT":
            self._garbage()
            return
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        lines = [method + b" " + self._url + b" HTTP/" + version]
        for name, value in self._fields:
            if name == b"connection":
                value = b", ".join(token for token in value.split(b",") if token.strip().lower() not in (b"upgrade", b"http2-settings"))
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self._closing = True
        self.deadline_s = 0.0
        queue, self._queue = self._queue, deque()
        for request in queue:
            cycle = request.cycle
            if cycle is not None:
                if not cycle.response_complete:
                    cycle.disconnected = True
                cycle.message_event.set()
            elif request.flow is not None:
                try:
                    request.flow.client_gone()
                except Exception:  # those behind it have bytes to give back too
                    logger.exception("a request whose client left could not be ended", request_id=request.id)
            self._release(request)
        self.flow.resume_writing()
        self._parser = self.parser = None  # each holds the other: the connection, and the key it showed last, would wait for the collector

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self.write_paused = True
        if self._queue and self._queue[0].flow is not None:
            self._queue[0].flow.pause()

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        self.write_paused = False
        if self._queue:
            if self._queue[0].flow is not None:
                self._queue[0].flow.resume()
            elif not self._queue[0].opened:
                self.loop.call_soon(self._turn)

    def on_deadline(self) -> None:
        """The ticker found the deadline passed."""
        self.deadline_s = 0.0
        request = self._queue[0] if self._queue else None
        answered = request is None or self._discarding or (request.flow is not None and request.flow.over)
        if request is not None and request.flow is not None and request.complete and not answered:
            request.flow.on_deadline()
            return
        late = request if request is not None and request.opened and not request.complete and not answered else None
        if late is not None and late.body_due_s <= self.relay.clock.now_s:
            self._body_late(late)
            return
        unsent = self._count_unsent()
        if unsent and (not self._unsent_bytes or unsent < self._unsent_bytes):  # the client still takes what was written
            self._unsent_bytes = unsent
            self.deadline_s = self.relay.clock.now_s + KEEP_ALIVE_S
        elif late is not None:
            self._body_late(late)
        elif unsent or self._queue:  # a head that does not come, the rest of a refused body, an answer that is not taken
            self._transport.abort()
        else:  # idle too long
            self._transport.close()

    def _count_unsent(self) -> int:
        """Bytes written here that the client has not acknowledged: ours, and those that the kernel holds."""
        unsent = self._transport.get_write_buffer_size()
        if unsent:
            try:
                raw = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0" * 4)
            except OSError:
                return unsent
            unsent += int.from_bytes(raw, sys.byteorder)
        return unsent

    # ASGI

    def _asgi_body(self, request: Request, cycle: RequestResponseCycle, body: bytes) -> None:
        if request.body_bytes > self.relay.max_body_bytes:
            self._transport.abort()
            return
        if request.opened:
            self._await_body(request)
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def _make_cycle(self, request: Request) -> None:
        """A request for the control plane, as uvicorn makes it."""
        url = httptools.parse_url(self._url)
        raw_path = url.path or b"/"
        path = raw_path.decode("latin-1")
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self._fields,
            "state": self.app_state.copy(),
            "method": self._parser.get_method().decode("ascii"),
            "path": self.root_path + (urllib.parse.unquote(path) if "%" in path else path),
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": url.query or b"",
        }
        request.cycle = RequestResponseCycle(
            scope=scope,
            transport=self._transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=request.expects_continue,
            keep_alive=request.keep_alive and not self.relay.draining,
            on_response=self.on_response_complete,
        )

    def on_response_complete(self) -> None:
        """ASGI has answered the first request."""
        self._state.total_requests += 1
        if self._transport.is_closing() or not self._queue:
            return
        self.flow.resume_reading()
        self._next()

    # shutting down

    @property
    def busy(self) -> bool:
        """Is a request being read or answered?"""
        return bool(self._queue) or self._in_head

    def shutdown(self) -> None:
        """The server drains. Idle connections linger: the next answer on them says `Connection: close`."""
        if self._queue and self._queue[0].cycle is not None:
            self._queue[0].cycle.keep_alive = False

    def end_now(self) -> None:
        """The drain time is over: end what runs, say so, settle it, close."""
        if self._queue and self._queue[0].flow is not None:
            self._queue[0].flow.shut_down()
        self._transport.abort() if self._transport.get_write_buffer_size() else self._transport.close()


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"The request's headers are larger than {MAX_HEAD_BYTES // 1024} KB.")


def edge_class(relay: Relay) -> type[Edge]:
    """What makes the protocol of a connection, for `uvicorn.Config(http=...)`: it is only ever called."""
    return cast("type[Edge]", partial(Edge, relay))


async def tick(relay: Relay, connections: set[Edge]) -> None:
    """The coarse clock of one server process: dates, deadlines of all connections, log batches. Runs until cancelled."""
    clock, second = relay.clock, 0
    while True:
        clock.now_s = now_s = time.monotonic()
        wall = int(time.time())
        if wall != second:
            second = wall
            clock.date_line = b"date: " + formatdate(wall, usegmt=True).encode() + b"\r\n"
        for edge in [edge for edge in connections if edge.deadline_s and edge.deadline_s <= now_s]:
            try:
                edge.on_deadline()
            except Exception:  # one connection must not stop the clock of all others
                logger.exception("deadline failed")
        relay.log.flush()
        relay.meter.flush()
        await asyncio.sleep(TICK_S)
