"""The fault matrix as a table: what a backend does, and what the stream contract says must come of it, for each kind of endpoint.

Kinds are those of `calls.Call`: "whole" (committed when the whole JSON body is here), "stream" (committed by the first data event), "raw"
(committed by the first byte of a 2xx body). Expectations are written from the contract (DESIGN section 5), not from the code.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import orjson

from gateway.routing.table import Timeouts
from tests.faults import scripts
from tests.faults.calls import DONE, JSON, SSE, Call, data
from tests.upstream import Script, Seen, Wire

CLOCKS = Timeouts(connect_s=1.5, first_byte_s=2.5, idle_s=2.0, total_s=30)  # short, but longer than a busy machine stops for
FLOOD_BYTES = 1_500_000
KEPT, CLOSED, ANY = "kept", "closed", "any"


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come of it.

    `events`: how many good events a stream relays before its last, the error event. `cut`: a raw answer breaks off without its end.
    `tail`: what follows the good events instead of [DONE]. `after_s`: not before this, and not much later. `sent`: requests that the
    backend sees. `connection`: is the one to the backend used again? `passes`: the backend's own body is the client's.
    """

    status: int = 200
    code: str | None = None
    ending: str = "success"
    sent: int = 1
    events: int | None = None
    cut: bool = False
    tail: bytes | None = None
    passes: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    connection: str = KEPT
    body: bytes | None = None
    content_type: str | None = None


def failed(status: int = 502, code: str = "upstream_error", ending: str = "upstream_error", **more: object) -> Expected:
    """A clean status before the commit point."""
    return Expected(status, code, ending, **({"connection": CLOSED} | more))  # type: ignore[arg-type]  # members by name


def broken(code: str = "upstream_error", ending: str = "upstream_error", **more: object) -> Expected:
    """After the commit point: an error event, or a raw answer that is cut."""
    return Expected(200, code, ending, **({"connection": CLOSED} | more))  # type: ignore[arg-type]  # members by name


FINE = Expected()
DEAD = failed()
REFUSED = replace(DEAD, sent=0, connection=ANY)
ANSWERED = replace(DEAD, connection=KEPT)
LATE = failed(504, "upstream_first_byte_timeout", "timeout", after_s=CLOCKS.first_byte_s)

Play = Callable[[Call], Script]
Step = Callable[[Wire, Seen], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`play` makes the backend's script for a call. None for a kind: the fault means nothing there. `times`: how often it misbehaves.

    `elsewhere`: with a second, good backend the client sees nothing of it. `where`: "refused" and "deaf" need no script.
    """

    name: str
    play: Play | None
    whole: Expected | None = None
    stream: Expected | None = None
    raw: Expected | None = None
    elsewhere: bool = False
    clocks: Timeouts = CLOCKS
    where: str = "script"
    protocols: tuple[str, ...] = ("openai", "responses", "messages", "raw")

    def expected(self, call: Call) -> Expected | None:
        if call.protocol not in self.protocols:
            return None
        return {"whole": self.whole, "stream": self.stream, "raw": self.raw}[call.kind]


# what a backend does


def good(call: Call) -> Script:
    """The answer that this call hopes for."""

    async def script(wire: Wire, seen: Seen) -> None:
        if call.kind != "stream":
            await wire.answer(call.good, content_type=call.content_type)
            return
        await wire.sse_head()
        for frame in call.frames:
            await wire.chunk(frame)
        if call.has_done:
            await wire.event(b"[DONE]")
        await wire.end()

    return script


def _begun(after: Step) -> Play:
    """Half an answer of any kind (of a stream two events), properly framed so far, then `after`."""

    def play(call: Call) -> Script:
        async def script(wire: Wire, seen: Seen) -> None:
            if call.kind == "stream":
                await wire.sse_head()
                await wire.chunk(call.frames[0] + call.frames[1])
            else:
                await wire.head(200, call.content_type, content_length=str(len(call.good)))
                await wire.send(call.good[: len(call.good) // 2])
            await asyncio.sleep(0.02)  # read by itself, not with what follows
            await after(wire, seen)

        return script

    return play


def _headed(after: Step) -> Play:
    """A head and no byte of a body."""

    def play(call: Call) -> Script:
        async def script(wire: Wire, seen: Seen) -> None:
            if call.kind == "stream":
                await wire.sse_head()
            else:
                await wire.head(200, call.content_type, content_length=str(len(call.good)))
            await after(wire, seen)

        return script

    return play


def _always(script: Script) -> Play:
    return lambda call: script


def _raw(bytes_: bytes, close: bool = True) -> Play:
    return _always(scripts.raw(bytes_, close))


def _blocks(make: Callable[[Call], tuple[bytes, ...]], after: Step | None = None) -> Play:
    """A stream of these chunks."""
    return lambda call: scripts.stream(*make(call), after=after)


def _body(make: Callable[[Call], bytes], **headers: str) -> Play:
    """A whole answer with this body, framed and typed as it should be."""
    return lambda call: scripts.answers(make(call), 200, call.content_type if call.kind != "stream" else SSE, **headers)


def _wire_bytes(call: Call) -> bytes:
    """The good answer as one run of bytes, head and framing included."""
    if call.kind != "stream":
        return f"HTTP/1.1 200 OK\r\ncontent-type: {call.content_type}\r\ncontent-length: {len(call.good)}\r\n\r\n".encode() + call.good
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(f), f) for f in (*call.frames, *((DONE,) if call.has_done else ())))
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def _bytewise(call: Call) -> Script:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.bytewise(_wire_bytes(call)[:2000])
        await wire.send(_wire_bytes(call)[2000:])

    return script


def _trickle(call: Call) -> Script:
    """Slower than the first-byte and the idle clock in all, but never idle; what is not streamed has to be whole before the former."""

    async def script(wire: Wire, seen: Seen) -> None:
        if call.kind == "stream":
            await wire.sse_head()
            for frame in call.frames:
                await wire.chunk(frame[:9])
                await asyncio.sleep(0.4)
                await wire.chunk(frame[9:])
                await asyncio.sleep(0.4)
            if call.has_done:
                await wire.event(b"[DONE]")
            await wire.end()
            return
        await wire.head(200, call.content_type, content_length=str(len(call.good)))
        step = len(call.good) // 4 + 1
        for at in range(0, len(call.good), step):
            await wire.send(call.good[at : at + step])
            await asyncio.sleep(0.8 if call.kind == "raw" else 0.1)

    return script


def flood_frames(call: Call) -> tuple[bytes, ...]:
    """Events of 10 KB, 1.5 MB in all, between the good ones."""
    pad = call.frames[1].replace(b"data: {", b'data: {"pad":"' + b"x" * 10_000 + b'",', 1)
    return (call.frames[0], *([pad] * (FLOOD_BYTES // 10_000)), *call.frames[1:])


def flood_good(call: Call) -> bytes:
    if call.content_type == JSON:
        return call.good[:-1] + b',"pad":"' + b"x" * FLOOD_BYTES + b'"}'
    return call.good * (FLOOD_BYTES // len(call.good))


def _flood(call: Call) -> Script:
    if call.kind == "stream":
        done = (DONE,) if call.has_done else ()
        return scripts.stream(*flood_frames(call), *done)
    return scripts.answers(flood_good(call), 200, call.content_type)


def _endless(call: Call) -> Script:
    async def script(wire: Wire, seen: Seen) -> None:
        await _headed(_nothing)(call)(wire, seen)
        try:
            await wire.chunk(call.frames[0])
            while True:
                await wire.chunk(call.frames[1])
                await asyncio.sleep(0.1)
        except ConnectionError:
            seen.note_closed()

    return script


async def _nothing(wire: Wire, seen: Seen) -> None:
    pass


COMMENT = b": still at it\n\n"


async def _comments(wire: Wire, seen: Seen) -> None:
    try:
        while True:
            await wire.chunk(COMMENT)
            await asyncio.sleep(0.05)
    except ConnectionError:
        seen.note_closed()


def _garbage_midway(call: Call) -> Script:
    """Good chunks, then a chunk size that is none."""
    content_type = SSE if call.kind == "stream" else call.content_type
    pieces = call.frames[:2] if call.kind == "stream" else (call.good[:9],)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return scripts.raw(head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"zz\r\n")


def _twice(call: Call) -> Script:
    """The good answer and, in the same breath, another one that nobody asked for."""
    return scripts.raw(_wire_bytes(call) + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", close=False)


def _hinted(call: Call) -> Script:
    return scripts.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + _wire_bytes(call), close=False)


def _by_close(call: Call) -> Script:
    """HTTP/1.0: no framing, the end of the connection is the end of the answer."""
    content_type, body = (SSE, b"".join(call.frames)) if call.kind == "stream" else (call.content_type, call.good)
    return scripts.raw(b"HTTP/1.0 200 OK\r\ncontent-type: " + content_type.encode() + b"\r\n\r\n" + body)


# the table

ERROR = {"error": {"message": "out of memory", "type": "x", "param": None, "code": None}}
OURS = {"error": {"message": "no", "type": "invalid_request_error", "param": "x", "code": "bad"}}
FULL = {"error": {"message": "slow down", "type": "rate_limit_exceeded", "param": None, "code": "rate_limit_exceeded"}}
_HTML = b"<html><body>oops at 10.1.2.3\n\n</body></html>"


def _status(number: int, expected: Expected, elsewhere: bool = True) -> Fault:
    play = _always(scripts.answers(ERROR, number, retry_after="7"))
    return Fault(str(number), play, expected, expected, expected, elsewhere)


def _passing(number: int) -> Fault:
    expected = Expected(number, "bad", "rejected", passes=orjson.dumps(OURS))
    return Fault(str(number), _always(scripts.answers(OURS, number)), expected, expected, expected)


_BUSY = failed(503, "upstream_unavailable", connection=KEPT, headers={"retry-after": "7"})
_LIMITED = Expected(
    429, "rate_limit_exceeded", "rejected", passes=orjson.dumps(FULL), headers={"retry-after": "3", "retry-after-ms": "2500"}
)
_CUT = broken(cut=True)
_TWO = broken(events=2)
_DEAF = failed(504, "upstream_connect_timeout", "timeout", sent=0, after_s=CLOCKS.connect_s, connection=ANY)
_OVER = failed(504, "upstream_total_timeout", "timeout", after_s=1.0)
_FINE_ONCE = replace(FINE, connection=CLOSED)

FAULTS = (
    Fault("good", good, FINE, FINE, FINE),
    Fault("refused", None, REFUSED, REFUSED, REFUSED, True, where="refused"),
    Fault("deaf", None, _DEAF, _DEAF, _DEAF, True, where="deaf"),
    Fault("silent", _always(scripts.silence()), LATE, LATE, LATE),
    Fault("head, then silent", _headed(scripts.closed), LATE, LATE, LATE),
    Fault("comments only", _headed(_comments), stream=LATE),
    Fault(
        "stalls",
        _begun(scripts.closed),
        LATE,
        broken("upstream_idle_timeout", "timeout", events=2, after_s=CLOCKS.idle_s),
        broken("upstream_idle_timeout", "timeout", cut=True, after_s=CLOCKS.idle_s),
    ),
    Fault("stalls in comments", _begun(_comments), stream=broken("upstream_idle_timeout", "timeout", events=2, after_s=CLOCKS.idle_s)),
    Fault(
        "endless",
        _endless,
        stream=broken("upstream_total_timeout", "timeout", events=-1, after_s=3.0),
        clocks=replace(CLOCKS, total_s=3.0),
    ),
    Fault("silent to the last clock", _always(scripts.silence()), _OVER, _OVER, _OVER, clocks=Timeouts(1.0, 0, 0, 1.0)),
    Fault("resets", _always(scripts.resets()), DEAD, DEAD, DEAD, True),
    Fault("closes", _raw(b""), DEAD, DEAD, DEAD, True),
    Fault("head, then resets", _headed(scripts.reset), DEAD, DEAD, DEAD, True),
    Fault("head, then closes", _headed(scripts.cut), DEAD, DEAD, DEAD, True),
    Fault("half a head", _raw(b"HTTP/1.1 200 OK\r\ncontent-ty"), DEAD, DEAD, DEAD, True),
    Fault("resets midway", _begun(scripts.reset), DEAD, _TWO, _CUT),
    Fault("closes midway", _begun(scripts.cut), DEAD, _TWO, _CUT),
    Fault("half a frame first", _blocks(lambda c: (c.frames[0][:-9],), scripts.cut), stream=DEAD, elsewhere=True),
    Fault("half a frame", _blocks(lambda c: (c.frames[0] + c.frames[1], c.frames[2][:-9]), scripts.cut), stream=_TWO),
    Fault("half a frame, clean end", _blocks(lambda c: (c.frames[0] + c.frames[1] + c.frames[2][:-9],)), stream=Expected(events=2)),
    Fault("half a json", _body(lambda c: c.good[: len(c.good) // 2]), ANSWERED, elsewhere=True),
    Fault("bytewise", _bytewise, FINE, FINE, FINE),
    Fault("trickles", _trickle, FINE, FINE, FINE),
    Fault("floods", _flood, Expected(body=b"flood"), Expected(body=b"flood"), Expected(body=b"flood")),
    Fault("a huge event", _blocks(lambda c: (c.frames[0] + c.frames[1], b"data: " + b"x" * 1_100_000)), stream=_TWO),
    Fault("too large", _body(lambda c: flood_good(c)[:-1] + b"," + flood_good(c)[1:]), DEAD),
    Fault("garbage", _raw(b"\x00\x01 no http at all\r\n\r\n"), DEAD, DEAD, DEAD, True),
    Fault("garbage for a status", _raw(b"HTTP/1.1 banana\r\n\r\n"), DEAD, DEAD, DEAD, True),
    Fault("garbage midway", _garbage_midway, DEAD, _TWO, _CUT),
    Fault("html", _always(scripts.answers(_HTML, 200, "text/html")), ANSWERED, ANSWERED, ANSWERED, True),
    Fault("html as it should not be", _body(lambda c: _HTML), ANSWERED, ANSWERED, elsewhere=True),
    Fault("compressed", _body(lambda c: gzip.compress(c.good), content_encoding="gzip"), ANSWERED, elsewhere=True),
    Fault("empty", _body(lambda c: b""), ANSWERED, ANSWERED, elsewhere=True),
    Fault("204", _raw(b"HTTP/1.1 204 No Content\r\n\r\n", close=False), ANSWERED, ANSWERED, elsewhere=True),
    Fault("no event", _blocks(lambda c: (b": hello\n\n",)), stream=ANSWERED, elsewhere=True),
    Fault("an error first", _blocks(lambda c: (data(ERROR),), scripts.closed), stream=DEAD, elsewhere=True),
    Fault("comment, error", _blocks(lambda c: (b": hi\n\n" + data(ERROR) + c.frames[0],), scripts.closed), stream=DEAD, elsewhere=True),
    Fault(
        "an error later",
        _blocks(lambda c: (c.frames[0], c.frames[1], data(ERROR))),
        stream=Expected(ending="upstream_error", events=2, tail=data(ERROR), connection=ANY),
    ),
    Fault(
        "an error later, done",
        _blocks(lambda c: (c.frames[0] + c.frames[1] + data(ERROR) + DONE,)),
        stream=Expected(ending="upstream_error", events=2, tail=data(ERROR), connection=ANY),
        protocols=("openai",),
    ),
    Fault("no done", _blocks(lambda c: c.frames), stream=FINE),
    Fault("done in odd spelling", _blocks(lambda c: (*c.frames, b"data:[DONE]\r\n\r\n")), stream=FINE, protocols=("openai",)),
    Fault("done, then more", _blocks(lambda c: (*c.frames, DONE + c.frames[1])), stream=FINE, protocols=("openai",)),
    Fault("done, then lingers", _blocks(lambda c: (*c.frames, DONE), scripts.closed), stream=_FINE_ONCE, protocols=("openai",)),
    Fault("not streamed", lambda c: scripts.answers(c.good), stream=Expected(content_type=JSON, body=b"good")),
    Fault("by close", _by_close, _FINE_ONCE, _FINE_ONCE),
    Fault(
        "by close, unfinished",
        lambda c: scripts.raw(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + c.frames[0] + c.frames[1]),
        stream=_TWO,
    ),
    Fault("two answers", _twice, _FINE_ONCE, _FINE_ONCE, _FINE_ONCE),
    Fault("hints", _hinted, FINE, FINE, FINE),
    Fault("endless 100", _raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000), DEAD, DEAD, DEAD, True),
    Fault("upgrades", _raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"), DEAD, DEAD, DEAD, True),
    Fault("a huge head", _raw(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000), DEAD, DEAD, DEAD, True),
    *(_status(number, replace(ANSWERED, connection=ANY)) for number in (301, 304)),
    *(_status(number, ANSWERED) for number in (401, 402, 403, 407, 500, 502, 504)),
    *(_status(number, _BUSY) for number in (503, 529)),
    Fault("429", _always(scripts.answers(FULL, 429, retry_after="3", retry_after_ms="2500")), _LIMITED, _LIMITED, _LIMITED, True),
    *(_passing(number) for number in (404, 409, 413)),
)
