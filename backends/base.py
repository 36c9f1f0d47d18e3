"""The seam between the relay and whatever answers a request.

A `Backend` is one place that answers (a URL, a local model, the echo); it opens one `Exchange` per attempt. The exchange reports to
its `Sink` by plain callbacks on the event loop: no task, no future, no await. The order of callbacks is

    on_head (on_data)* on_end          the answer is complete
    (on_head (on_data)*)? on_error     it is not, and nothing more follows

After `abort()` no callback follows at all. Callbacks may run inside `start()`. A sink may call `pause`, `resume` and `abort` from
inside a callback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from backends.errors import BackendError

Headers = Sequence[tuple[bytes, bytes]]


class Call:
    """One attempt: what to send. Nothing of the client's own credentials or hop headers is in it.

    `target` is the name of the route's target, for backends that serve several. `path` is relative to the backend's base URL
    ("/chat/completions"). `headers` are extra headers beside those that the backend adds itself (host, content-length, authorization),
    lower-case names; `body` is complete. Not changed once it is made.
    """

    __slots__ = ("body", "connect_timeout_s", "content_type", "headers", "operation", "path", "target")

    def __init__(
        self,
        target: str,
        operation: str,
        path: str,
        body: bytes,
        headers: Headers,
        connect_timeout_s: float,
        content_type: bytes = b"application/json",
    ) -> None:
        self.target = target
        self.operation = operation
        self.path = path
        self.body = body
        self.headers = headers
        self.connect_timeout_s = connect_timeout_s
        self.content_type = content_type


class Sink(Protocol):
    """Receives one exchange. Implemented by the relay's flow and by tests."""

    def on_head(self, status: int, headers: Headers) -> None:
        """Status and headers of the final answer (never 1xx). Header names are lower-case."""

    def on_data(self, data: bytes) -> None:
        """A piece of the decoded body (no chunk framing), as it was read."""

    def on_end(self, by_close: bool) -> None:
        """The answer is over. `by_close`: only the closing of the connection says so, so it may be truncated."""

    def on_error(self, error: BackendError) -> None:
        """The attempt failed. Nothing follows."""


class Exchange(Protocol):
    """One attempt at one backend."""

    @property
    def connect_ms(self) -> float | None:
        """Milliseconds that connecting took; 0 where the connection stood already, None where there is none."""

    @property
    def sent(self) -> bool:
        """May any byte of the request have reached the backend? False as long as a connection is being made."""

    def start(self, call: Call, sink: Sink) -> None:
        """Send the call. Never raises for what the network does: that comes as `on_error`."""

    def pause(self) -> None:
        """Stop reading from the backend (the client is slow)."""

    def resume(self) -> None:
        """Read on."""

    def abort(self) -> None:
        """Close towards the backend at once; no callback follows. Harmless when the exchange is over."""


class Backend(Protocol):
    """One place that answers requests. Owned by the route table; lives as long as some revision in force names it."""

    asks_usage: bool
    """May `stream_options.include_usage` be put into a stream's body? The relay clears it for a backend that refused such a body."""

    @property
    def ready(self) -> bool:
        """False while the backend knows that it cannot serve (a local model still loading). Remote URLs are always ready."""

    def open(self) -> Exchange:
        """A fresh exchange for one attempt."""

    async def close(self) -> None:
        """Close idle connections; running exchanges finish."""
