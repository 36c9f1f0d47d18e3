"""Shadow traffic: after a sampled request has succeeded, the same body goes to one more target, and its answer is compared and dropped.

It starts when the original is over, so it can neither slow nor fail it. Nobody is charged for it and it is in no usage record: what it
shows are the figures of `Meter.shadow`. A copy that would be one too many is not sent, and counted as skipped.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import orjson
import structlog

from backends.base import Call
from gateway.relay import answers
from gateway.relay.operations import Form
from gateway.relay.stream import EventStream
from gateway.wire import sse

if TYPE_CHECKING:
    from backends.base import Exchange, Headers
    from backends.errors import BackendError
    from gateway.metering.record import UsageRecord
    from gateway.relay.operations import Operation
    from gateway.routing.table import Route, Target
    from gateway.runtime import Relay

logger = structlog.get_logger(__name__)

_LONGEST_S: Final = 600.0  # then a copy is given up
_KEPT_BYTES: Final = 1_000_000  # of an answer larger than this, the tokens are not looked for


class Original:
    """What the copy is compared with."""

    __slots__ = ("completion_tokens", "duration_ms", "model", "request_id", "status")

    def __init__(self, record: UsageRecord) -> None:
        self.request_id = record.request_id
        self.model = record.model
        self.status = record.status
        self.duration_ms = record.duration_ms
        self.completion_tokens = record.completion_tokens


def shadow(relay: Relay, route: Route, operation: Operation, content_type: bytes, body: bytes, record: UsageRecord) -> None:
    """Send the copy, unless too many run. Never raises: the original is over and must stay so."""
    plan = route.shadow
    if plan is None:
        return
    target = plan.target
    if relay.copies.in_flight(target) >= plan.max_in_flight or relay.draining or not operation.serves(target.type):
        relay.meter.shadow_skipped(record.model, target.id)
        return
    try:
        copy = Copy(relay, target, operation, Original(record))
        copy.start(_call(route, target, operation, content_type, body, record.request_id))
    except Exception:
        logger.exception("shadow failed", request_id=record.request_id)


def _call(route: Route, target: Target, operation: Operation, content_type: bytes, body: bytes, request_id: str) -> Call:
    peek = operation.read(body, content_type)
    values = {name: orjson.dumps(value) for name, value in operation.parameters(route.parameters, peek).items()}
    if target.upstream_model != peek.model:
        values["model"] = orjson.dumps(target.upstream_model)
    if values:
        replace = {name: value for name, value in values.items() if name in peek.fields}
        body = operation.edit(body, content_type, replace, [item for item in values.items() if item[0] not in replace])
    headers = ((b"x-request-id", f"{request_id}-shadow".encode()),)
    return Call(target.id, operation.name, operation.path, body, headers, route.timeouts.connect_s, operation.content_type(content_type))


class Copy:
    """The sink of one copy."""

    __slots__ = (
        "_body",
        "_bytes",
        "_exchange",
        "_operation",
        "_original",
        "_relay",
        "_started_s",
        "_status",
        "_stream",
        "_target",
        "_timer",
    )

    def __init__(self, relay: Relay, target: Target, operation: Operation, original: Original) -> None:
        self._relay = relay
        self._target = target
        self._operation = operation
        self._original = original
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._started_s = time.monotonic()
        self._status = 0
        self._stream: EventStream | None = None
        self._body: list[bytes] = []
        self._bytes = 0

    def start(self, call: Call) -> None:
        relay = self._relay
        self._exchange = exchange = self._target.backend.open()
        relay.load.enter(self._target)
        relay.copies.enter(self._target)
        self._timer = asyncio.get_running_loop().call_later(_LONGEST_S, self._give_up, "timeout")
        exchange.start(call, self)

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status
        content_type = answers.header(headers, b"content-type")
        if 200 <= status < 300 and self._operation.form(b"event-stream" in content_type, content_type) is Form.EVENTS:
            self._stream = EventStream(self._operation.protocol, False, False, None)

    def on_data(self, data: bytes) -> None:
        try:
            self._bytes += len(data)
            if self._stream is not None:
                block = self._stream.feed(data)
                if block:
                    self._stream.pass_on(block)
            elif self._bytes <= _KEPT_BYTES:
                self._body.append(data)
            elif self._bytes <= self._relay.max_answer_bytes:
                self._body.clear()
            else:
                self._give_up("too_large")
        except (sse.EventTooLarge, ValueError):
            self._give_up("garbage")

    def on_end(self, by_close: bool) -> None:
        del by_close
        self._exchange = None
        self._over("ok" if 200 <= self._status < 300 else f"{self._status // 100}xx")

    def on_error(self, error: BackendError) -> None:
        self._exchange = None
        self._over(error.reason)

    def _give_up(self, outcome: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()
            self._over(outcome)

    def _over(self, outcome: str) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self._relay.load.leave(self._target)
        self._relay.copies.leave(self._target)
        original, seconds = self._original, time.monotonic() - self._started_s
        tokens = self._tokens()
        self._relay.meter.shadow(
            original.model, self._target.id, outcome, seconds, original.duration_ms / 1000, tokens, original.completion_tokens
        )
        log = self._relay.log
        log.shadowed(time.time(), original.request_id, original.model, self._target.id, outcome, self._status, seconds * 1000, tokens)

    def _tokens(self) -> int | None:
        """Completion tokens of the copy; None where its backend does not say."""
        if self._stream is not None:
            usage = self._stream.usage
        else:
            try:
                usage = self._operation.protocol.usage_of(orjson.loads(b"".join(self._body)))
            except orjson.JSONDecodeError:
                return None
        return usage.completion_tokens if usage is not None else None
