"""One attempt at one target: the sink of its exchange.

The head decides in which of three shapes the answer comes:

    whole    collected, and judged when it is complete                          `answers.take`
    events   server-sent events: held until the first data event, then relayed  `stream.EventStream`
    raw      audio and images: relayed as it comes from its first byte on

Up to the commit point (the first of these things that goes to the client) the attempt ends in `flow.failed`, and another target may be
tried; after it in `flow.finish` or `flow.broken`, and never in another target.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from backends.errors import ConnectTimedOut, NotReady, StaleConnection
from gateway.errors import GatewayError, InternalError, ModelLoading, UpstreamFailed, UpstreamTimeout
from gateway.relay import answers
from gateway.relay.operations import Form
from gateway.relay.stream import EventStream
from gateway.wire import heads, sse

if TYPE_CHECKING:
    from backends.base import Call, Exchange, Headers
    from backends.errors import BackendError
    from gateway.relay.flow import Flow
    from gateway.routing.table import Target

_LINGER_S: Final = 1.0  # how long a backend may take to end its message behind [DONE] before its connection is given up
_RAW_TAIL_BYTES: Final = 4096  # of a raw JSON answer: its usage stands at the end
_SENT_AGAIN_S: Final = 0.25  # at most, between two looks at whether a request has left
_WEIGHED_FROM_BYTES: Final = 1_000_000  # a whole answer above this counts against the memory that the process may hold


class Attempt:
    """What became of one try. `target` is None where the gateway answers itself. `asked_usage`: we put `stream_options` into the body."""

    __slots__ = (
        "_body",
        "_collected_bytes",
        "_held_bytes",
        "_last",
        "_raw",
        "_tail",
        "_taps_tail",
        "asked_usage",
        "client_model",
        "committed",
        "exchange",
        "flow",
        "headers",
        "started_s",
        "status",
        "stream",
        "target",
    )

    def __init__(self, flow: Flow, target: Target | None, exchange: Exchange, asked_usage: bool, client_model: str | None) -> None:
        self.flow = flow
        self.target = target
        self.exchange: Exchange | None = exchange
        self.asked_usage = asked_usage
        self.client_model = client_model  # what the answer's `model` is to say; None: leave it as it is
        self.started_s = time.monotonic()
        self.committed = False
        self.status = 0
        self.stream: EventStream | None = None
        self._raw = False
        self._taps_tail = False  # a raw answer that is JSON: its usage stands at the end
        self._body: list[bytes] = []
        self._collected_bytes = 0
        self._held_bytes = 0
        self._tail = b""
        self._last = b""

    def start(self, call: Call) -> None:
        exchange = self.exchange
        assert exchange is not None
        exchange.start(call, self)
        self._note_sent(0.02)

    def _note_sent(self, again_s: float) -> None:
        """What has left for a backend is work of a backend, though this process be killed. A connection that is being made tells nobody."""
        exchange, flow = self.exchange, self.flow
        if exchange is None or flow.over:
            return
        if exchange.sent:
            flow.progress.sent(flow.place)
        else:
            asyncio.get_running_loop().call_later(again_s, self._note_sent, min(2 * again_s, _SENT_AGAIN_S))

    @property
    def sent(self) -> bool:
        """May the backend have begun to work?"""
        return self.exchange is None or self.exchange.sent

    @property
    def sent_at_s(self) -> float:
        """When the request went out (time.monotonic)."""
        connect_ms = self.exchange.connect_ms if self.exchange is not None else None
        return self.started_s + (connect_ms or 0.0) / 1000

    @property
    def relayed_tokens(self) -> int:
        """A rough count of what came, for where the backend says nothing: one token an event or so, else four bytes each."""
        return self.stream.tokens if self.stream is not None else self._collected_bytes // 4

    # the sink

    def on_head(self, status: int, headers: Headers) -> None:
        try:
            self._take_head(status, headers)
        except Exception:
            self.flow.bug()

    def on_data(self, data: bytes) -> None:
        flow = self.flow
        if flow.over:
            return
        try:
            stream = self.stream
            if stream is not None:
                if not stream.done:
                    block = stream.feed(data)
                    if block:
                        self._relay(stream, block)
            elif self._raw:
                self._relay_raw(data)
            else:
                self._collect(data)
        except sse.EventTooLarge:
            self._break_off(UpstreamFailed("The backend sent an event larger than the gateway takes."), "garbage")
        except Exception:
            flow.bug()

    def on_end(self, by_close: bool) -> None:
        self._over()
        if self.flow.over:
            return
        try:
            if self.stream is not None:
                self._end_of_stream(self.stream)
            elif self._raw:
                self._end_of_raw()
            else:
                answers.take(self.flow, self, b"".join(self._body), by_close)
        except Exception:
            self.flow.bug()

    def on_error(self, error: BackendError) -> None:
        sent = self.sent
        self._over()
        if self.flow.over:
            return
        try:
            self._take_error(error, sent)
        except Exception:
            self.flow.bug()

    def _over(self) -> None:
        """The exchange has ended by itself."""
        self.exchange = None
        self._release()

    def abort(self) -> None:
        """Close towards the backend at once."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.abort()
        self._release()

    def _release(self) -> None:
        if self._held_bytes:
            self.flow.relay.held_bytes -= self._held_bytes
            self._held_bytes = 0

    def _by_close(self) -> bool:
        """Does only the end of the connection say that the answer is over?"""
        return not any(name in _FRAMING for name, _ in self.headers)

    # the three shapes

    def _take_head(self, status: int, headers: Headers) -> None:
        flow = self.flow
        self.status = status
        self.headers = headers
        flow.progress.sent(flow.place)
        if self.exchange is not None:
            flow.connected(self.exchange.connect_ms)
        if not 200 <= status < 300:
            return
        if flow.resent_without_usage:
            flow.proven_without_usage(self)
        operation = flow.request.operation
        form = operation.form(flow.streams, answers.header(headers, b"content-type"))
        if form is Form.EVENTS:
            rename = operation.protocol.rename(self.client_model) if self.client_model is not None else None
            self.stream = EventStream(operation.protocol, self._by_close(), self.asked_usage, rename, flow.keeper(operation))
            if not operation.generates:
                flow.progress.envelope(flow.place, -1)
        elif form is Form.RAW:
            self._raw = True
            self._taps_tail = b"json" in answers.header(headers, b"content-type").lower()

    def _collect(self, data: bytes) -> None:
        self._body.append(data)
        self._collected_bytes += len(data)
        relay = self.flow.relay
        if self._collected_bytes > relay.max_answer_bytes:
            self._give_up(UpstreamFailed("The backend's answer is larger than the gateway takes."), "too_large")
        elif self._collected_bytes > _WEIGHED_FROM_BYTES:
            weighed, self._held_bytes = self._held_bytes, self._collected_bytes
            relay.held_bytes += self._held_bytes - weighed
            if relay.held_bytes > relay.max_held_bytes:
                self._give_up(self.flow.too_much_held(), "no_memory")

    def _relay(self, stream: EventStream, block: bytes) -> None:
        """A block of whole events."""
        flow = self.flow
        if self.committed:
            if block.startswith(b"data:") or sse.has_data(block):  # a comment does not wind the idle clock
                flow.wind_idle_clock()
        elif not self._commit_stream(stream, block):
            return
        block = stream.pass_on(block)
        if stream.news:
            self._note(stream)
        if stream.done:
            self._last = block
            asyncio.get_running_loop().call_soon(self._end_soon)
        elif block:
            flow.progress.handing(flow.place, stream.events, stream.spoken_bytes)  # first: what the client has is never more than is noted
            flow.edge.write_piece(flow.request, block)
            if flow.content is not None:
                flow.content.add(block)

    def _note(self, stream: EventStream) -> None:
        """What is new of the stream as a whole, for whoever finds this request without its end."""
        stream.news = False
        progress, slot, usage = self.flow.progress, self.flow.place, stream.usage
        generates = self.flow.request.operation.generates
        if generates:
            progress.envelope(slot, stream.envelope_bytes)
        if usage is not None:
            prompt = -1 if usage.prompt_tokens is None else usage.prompt_tokens
            completion = usage.completion_tokens if usage.completion_tokens is not None else -1 if generates else 0
            progress.reported(slot, stream.usage_at, prompt, completion, usage.cached_tokens, usage.reasoning_tokens)

    def _commit_stream(self, stream: EventStream, block: bytes) -> bool:
        """Is the first data event here, and is it no error? Then the head goes out, and no other target will be tried."""
        data = stream.first_data(block)
        if data is None:
            return False
        if stream.is_error(data):
            failure = answers.stream_error(self.flow, answers.unsaid(self, data))
            if failure.status < 500:
                self._give_up(failure, "4xx")
            else:
                self._break_off(failure, "error_event")
            return False
        self.committed = True
        self.flow.commit(200, heads.SSE)
        comments, stream.held_comments = stream.held_comments, b""
        if comments:  # they go first, as they came
            self.flow.edge.write_piece(self.flow.request, comments)
            if self.flow.content is not None:
                self.flow.content.add(comments)
        return True

    def _relay_raw(self, data: bytes) -> None:
        flow = self.flow
        if self.committed:
            flow.wind_idle_clock()
        else:
            self.committed = True
            flow.commit(self.status, answers.raw_lines(self.headers), self._by_close())
        self._collected_bytes += len(data)
        if self._taps_tail:
            self._tail = (self._tail + data)[-_RAW_TAIL_BYTES:]
        flow.edge.write_piece(flow.request, data)
        if flow.content is not None:
            flow.content.add(data)

    # endings

    def _end_soon(self) -> None:
        """[DONE] was seen. If the backend lingers, the client does not: finish now, and let the exchange run out."""
        stream = self.stream
        if self.flow.over or stream is None:
            return
        try:
            self._finish_stream(stream)
        except Exception:
            self.flow.bug()
        if self.exchange is not None:
            asyncio.get_running_loop().call_later(_LINGER_S, self.abort)

    def _end_of_stream(self, stream: EventStream) -> None:
        rest = stream.last()
        if rest:
            try:
                self._relay(stream, rest)
            except sse.EventTooLarge:
                rest = b""
            if self.flow.over or self.flow.attempt is not self:  # it was an error: another target is at work
                return
        if not self.committed:
            self.flow.failed(UpstreamFailed(f"The backend {self.flow.backend_name} ended the stream before its first event."), "empty")
        elif stream.complete:
            self._finish_stream(stream)
        else:
            self.flow.broken(self._broke_off(), "closed", "upstream_error", self._last)

    def _finish_stream(self, stream: EventStream) -> None:
        """A clean end."""
        protocol = self.flow.request.operation.protocol
        if stream.failed:
            self.flow.finish(self._last, "upstream_error", "error_event")
        else:
            self.flow.finish(self._last + protocol.done, "success", "ok")

    def _end_of_raw(self) -> None:
        if not self.committed:
            self.flow.failed(UpstreamFailed(f"The backend {self.flow.backend_name} answered with nothing."), "empty")
            return
        if self._taps_tail:
            self.flow.usage = answers.raw_usage(self.flow, self._tail)
        self.flow.finish(b"", "success", "ok")

    def _take_error(self, error: BackendError, sent: bool) -> None:
        flow, name = self.flow, self.flow.backend_name
        if error.__cause__ is not None:
            flow.log_cause(error.__cause__)
        if self.target is None:
            flow.failed(InternalError("The gateway failed on this request; its log says why, under the request id."), "bug")
        elif self.committed:
            flow.broken(self._broke_off(), error.reason, "upstream_error", self._last)
        elif isinstance(error, NotReady):
            model = repr(flow.model)
            if error.reason == "failed":
                text = f"The model {model} could not be loaded; the gateway's log says why."
            else:
                text = f"The model {model} is still loading."
            flow.failed(ModelLoading(text, retry_after_s=error.retry_after_s or 2), error.reason)
        elif isinstance(error, ConnectTimedOut):
            text = f"The backend {name} could not be reached in time."
            flow.failed(UpstreamTimeout(text, code="upstream_connect_timeout"), error.reason)
        else:
            failure = UpstreamFailed(f"The backend {name} could not be reached or did not answer properly ({error.reason}).")
            if isinstance(error, StaleConnection):
                flow.failed_stale(failure)
            else:
                flow.failed(failure, error.reason)

    def _break_off(self, failure: GatewayError, outcome: str) -> None:
        """The backend's answer cannot be used: close towards it, then fail over or say so."""
        self.abort()
        if self.committed:
            self.flow.broken(failure, outcome, "upstream_error", self._last)
        else:
            self.flow.failed(failure, outcome)

    def _give_up(self, failure: GatewayError, outcome: str) -> None:
        """Before the commit point: what the backend is not to blame for, and no other would do better."""
        self.abort()
        self.flow.given_up(failure, outcome)

    def _broke_off(self) -> UpstreamFailed:
        return UpstreamFailed(f"The backend {self.flow.backend_name} broke off its answer.")


_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
