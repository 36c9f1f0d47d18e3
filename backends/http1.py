"""Upstream HTTP/1.1: a keep-alive pool, one exchange per connection at a time, httptools as the parser. No task on the usual way.

What can go wrong is sorted by what may have happened at the backend (backends.errors):

- before a connection stands: ConnectFailed, ConnectTimedOut (nothing was sent);
- a *reused* connection that dies before any byte of an answer: StaleConnection (it was closed as we wrote: the caller may send again);
- a fresh connection that dies before any byte: MaybeSent;
- anything after the first byte: BrokeOff.

Where it connects to is decided once per connection: the name is looked up, each address is put to `forbidden`, and the very address that
passed is connected to, so that a name cannot say one thing to the check and another to the connection. (A host that is an address itself is
judged once for all.) A request on a connection that stands pays nothing for it. Nothing asks the environment for a proxy.

A connection goes back to the pool only if the answer was complete, nothing followed it, the request had been written out, and both sides
keep it alive. A byte that arrives on an idle connection closes it. Informational answers (1xx) are skipped.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import httptools

from backends.errors import BrokeOff, ConnectFailed, ConnectTimedOut, MaybeSent, StaleConnection

if TYPE_CHECKING:
    from backends.base import Call, Sink
    from backends.errors import BackendError

# uvicorn and vLLM close an idle connection after 5 s: ours is gone before, so that a request rarely meets a closing one.
IDLE_S: Final = 4.0
MAX_IDLE: Final = 512
MAX_HEAD_BYTES: Final = 64 * 1024
_JOIN_BELOW: Final = 16 * 1024  # a body below this is copied behind its head: one write is cheaper than two


class Http1Pool:
    """Connections to one origin. Implements `backends.base.Backend`.

    `authorization` is a whole header value, or None to send none. `forbidden` says of an address why nothing connects to it, or None;
    without it everything may be connected to.
    """

    ready = True

    def __init__(
        self,
        base_url: str,
        authorization: str | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        forbidden: Callable[[str], str | None] | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        self.asks_usage = True
        self._forbidden = forbidden
        self.host = (parts.hostname or "").replace("%25", "%")  # the zone of a link-local address, as a URL spells it
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._host_header = parts.netloc.rpartition("@")[2].encode()
        self._authorization = b"authorization: " + authorization.encode("latin-1") + b"\r\n" if authorization else b""
        self._heads: dict[tuple[str, bytes], bytes] = {}
        self.idle: deque[Connection] = deque()
        self.connections: set[Connection] = set()
        self.closed = False
        self._literal = self._allowed([self.host]) if _is_address(self.host) else None

    def open(self) -> Http1Exchange:
        return Http1Exchange(self)

    async def close(self) -> None:
        """Close what is idle; running exchanges finish and close behind themselves."""
        self.closed = True
        while self.idle:
            self.idle.pop().drop()

    async def addresses(self) -> list[str]:
        """Those of the host that may be connected to, in the resolver's order. Raises OSError, ValueError."""
        if self._literal is not None:
            return self._literal
        found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return self._allowed([str(address[0]) for _, _, _, _, address in found])

    def _allowed(self, addresses: list[str]) -> list[str]:
        forbidden = self._forbidden
        return addresses if forbidden is None else [ip for ip in addresses if forbidden(ip) is None]

    def take(self, now_s: float) -> Connection | None:
        """The most recently used live connection, or None. Older ones that idled too long are closed on the way."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.usable and now_s - connection.idle_since_s < IDLE_S:
                return connection
            connection.drop()
        return None

    def give(self, connection: Connection, now_s: float) -> None:
        if self.closed or len(self.idle) >= MAX_IDLE:
            connection.drop()
            return
        connection.idle_since_s = now_s
        self.idle.append(connection)
        oldest = self.idle[0]
        if now_s - oldest.idle_since_s > IDLE_S:
            self.idle.popleft().drop()

    def forget(self, connection: Connection) -> None:
        """It was closed while it idled."""
        if connection in self.idle:
            self.idle.remove(connection)

    def distrust(self) -> None:
        """A connection died while it idled: its neighbours are likely dead too, and a request gets one more try, not one per neighbour."""
        while self.idle:
            self.idle.pop().drop()

    def target(self, path: str) -> str:
        """The request target of an operation's path."""
        return self._prefix + path

    def head(self, path: str, content_type: bytes) -> bytes:
        """The request head up to the value of content-length. One per path: built once."""
        head = self._heads.get((path, content_type))
        if head is None:
            target = self.target(path).encode("ascii")
            line = b"POST " + target + b" HTTP/1.1\r\nhost: " + self._host_header + b"\r\n"
            types = b"content-type: " + content_type + b"\r\naccept: application/json, text/event-stream\r\n"
            head = line + self._authorization + types + b"accept-encoding: identity\r\ncontent-length: "
            if len(self._heads) < 64:  # a multipart boundary makes every content type its own
                self._heads[(path, content_type)] = head
        return head


class Http1Exchange:
    """One attempt over one connection. Implements `backends.base.Exchange`."""

    __slots__ = ("_call", "_connecting", "_paused", "_pool", "connect_ms", "connection", "over", "sent", "sink")

    def __init__(self, pool: Http1Pool) -> None:
        self._pool = pool
        self._call: Call | None = None
        self.connect_ms: float | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._paused = False
        self.connection: Connection | None = None
        self.sent = False
        self.over = False

    def start(self, call: Call, sink: Sink) -> None:
        self._call = call
        self.sink = sink
        connection = self._pool.take(time.monotonic())
        if connection is not None:
            self.connect_ms = 0.0
            self._send(connection, reused=True)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(call.connect_timeout_s))

    def pause(self) -> None:
        self._paused = True
        if self.connection is not None and not self.connection.transport.is_closing():
            self.connection.transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
        if self.connection is not None and not self.connection.transport.is_closing():
            self.connection.transport.resume_reading()

    def abort(self) -> None:
        if self.over:
            return
        self.over = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self.connection is not None:
            self.connection.exchange = None
            self.connection.drop()
            self.connection = None

    async def _connect(self, timeout_s: float) -> None:
        pool, started_s = self._pool, time.monotonic()
        connection = Connection(pool)
        try:
            async with asyncio.timeout(timeout_s or None):
                await self._reach(connection)
        except TimeoutError:
            self._fail(ConnectTimedOut())
        except ConnectFailed as error:
            self._fail(error)
        except ssl.SSLError:
            self._fail(ConnectFailed("tls"))
        except (OSError, ValueError) as error:  # ValueError: a host name that no resolver takes
            self._fail(ConnectFailed("refused" if isinstance(error, ConnectionRefusedError) else "unreachable"))
        else:
            self._connecting = None
            self.connect_ms = (time.monotonic() - started_s) * 1000
            if self.over:
                connection.drop()
            else:
                self._send(connection, reused=False)
        finally:
            if self.connection is not connection:  # uvloop closes a connect that is cancelled late without a word to the protocol
                pool.connections.discard(connection)

    async def _reach(self, connection: Connection) -> None:
        """Connect to the first address of the host that may be used and answers."""
        pool, loop = self._pool, asyncio.get_running_loop()
        name = pool.host.partition("%")[0] if pool.tls else None
        last: OSError | None = None
        for ip in await pool.addresses():
            try:
                await loop.create_connection(lambda: connection, ip, pool.port, ssl=pool.tls, server_hostname=name)
            except ssl.SSLError:
                raise
            except OSError as error:
                last = error
            else:
                return
        raise last or ConnectFailed("forbidden")

    def _fail(self, error: BackendError) -> None:
        self._connecting = None
        if not self.over:
            self.over = True
            self.sink.on_error(error)

    def _send(self, connection: Connection, reused: bool) -> None:
        call, self._call = self._call, None  # its body may be large, and its answer may take an hour
        assert call is not None
        self.connection = connection
        self.sent = True
        connection.begin(self, reused)
        if self._paused:
            connection.transport.pause_reading()
        body = call.body
        head, length, lines = self._pool.head(call.path, call.content_type), str(len(body)).encode(), b""
        for name, value in call.headers:
            lines += b"%b: %b\r\n" % (name, value)
        if len(body) < _JOIN_BELOW:
            connection.transport.write(b"%b%b\r\n%b\r\n%b" % (head, length, lines, body))
        else:
            connection.transport.writelines((b"%b%b\r\n%b\r\n" % (head, length, lines), body))


class Connection(asyncio.Protocol):
    """One connection: the parser's callbacks and the rules of re-use."""

    transport: asyncio.Transport

    def __init__(self, pool: Http1Pool) -> None:
        self.pool = pool
        self.exchange: Http1Exchange | None = None
        self.usable = True
        self.idle_since_s = 0.0
        self._reused = False
        self._answer_bytes = 0
        self._reset()

    def _reset(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_done = False
        self._complete = False
        self._informational = False
        self._delimited = False
        self._keep = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pool.connections.add(self)

    def begin(self, exchange: Http1Exchange, reused: bool) -> None:
        self.exchange = exchange
        self._reused = reused
        self._answer_bytes = 0
        self._headers = []
        self._head_done = self._complete = self._informational = self._delimited = self._keep = False

    def drop(self) -> None:
        """Close now. Whoever drops has detached the exchange or does not want it told."""
        self.usable = False
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # nobody asked: never let these bytes become the answer to the next request
            self.drop()
            return
        self._answer_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break(exchange, "upgrade")
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Exception) and not isinstance(cause, httptools.HttpParserError | _Surplus):
                self._break(exchange, "callback")
                raise cause from None  # a bug of ours, not of the backend: let the loop's handler log it
            if not self._complete:
                self._break(exchange, "garbage")
                return
            self.usable = False  # the answer stands; whatever came behind it is nobody's
        if self._complete:
            self._finish(exchange)
        elif not self._head_done and self._answer_bytes > MAX_HEAD_BYTES:
            self._break(exchange, "garbage")

    def on_message_begin(self) -> None:
        if self._complete:
            raise _Surplus

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if not self._head_done:  # afterwards it is a trailer: never part of the head
            self._headers.append((name, value))
            if name in _FRAMING:
                self._delimited = True

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200:
            self._informational = True
            return
        if status in (204, 304):
            self._delimited = True
        self._head_done = True
        exchange = self.exchange
        if exchange is not None and not exchange.over:
            exchange.sink.on_head(status, self._headers)

    def on_body(self, body: bytes) -> None:
        exchange = self.exchange
        if exchange is not None and not exchange.over:
            exchange.sink.on_data(body)

    def on_message_complete(self) -> None:
        if self._informational:
            self._informational = self._delimited = False
            self._headers = []
            return
        self._complete = True
        self._keep = self.parser.should_keep_alive()

    def _finish(self, exchange: Http1Exchange) -> None:
        self.exchange = None
        if self._keep and self.usable and self.transport.get_write_buffer_size() == 0 and not self.transport.is_closing():
            if exchange._paused:
                self.transport.resume_reading()
            self.pool.give(self, time.monotonic())
        else:
            self.drop()
        if not exchange.over:
            exchange.over = True
            exchange.connection = None
            exchange.sink.on_end(False)

    def _break(self, exchange: Http1Exchange, reason: str) -> None:
        self.exchange = None
        self.drop()
        if not exchange.over:
            exchange.over = True
            exchange.connection = None
            exchange.sink.on_error(BrokeOff(reason))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self.pool.connections.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            self.pool.forget(self)
            return
        if exchange.over:
            return
        exchange.over = True
        exchange.connection = None
        if self._head_done and exc is None and not self._delimited:
            exchange.sink.on_end(True)
        elif self._answer_bytes:
            exchange.sink.on_error(BrokeOff("reset" if exc else "closed"))
        elif self._reused:
            self.pool.distrust()
            exchange.sink.on_error(StaleConnection())
        else:
            exchange.sink.on_error(MaybeSent("reset" if exc else "closed"))


_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))


class _Surplus(Exception):
    """Bytes of a second answer behind the first."""


def _is_address(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def open_connections(pools: list[Http1Pool]) -> dict[str, Any]:
    """Counts for metrics: connections in use and idle over some pools."""
    total = sum(len(pool.connections) for pool in pools)
    idle = sum(len(pool.idle) for pool in pools)
    return {"active": total - idle, "idle": idle}
