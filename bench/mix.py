"""The mix of the soak: kinds of requests, how often each comes, and what each must be answered with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.client import Answer
from bench.payload import (
    BROKEN,
    DONE,
    FAILED,
    RESET,
    STREAMED,
    Ask,
    answer_body,
    chunk,
    embedding_body,
    embedding_request,
    error_body,
    request_body,
    stream_body,
)

GOOD, FAULTY = "bench", "faulty"  # model names: backends that always answer, and one whose answers are as the request says
KNOWN, UNKNOWN, POOR = "known", "unknown", "poor"  # keys: the limited one, one that was never issued, one whose budget is spent
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
BEFORE, AFTER = "before", "after"
BLOCK = 1000

Check = Callable[[Ask, bytes], str]
"""What is wrong with a body, or nothing."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: `share` of every BLOCK. `admitted`: it must be a row in the books, whatever its end.

    `leaves`: the client hangs up a moment after it has sent the request (BEFORE), or at the first event (AFTER).
    """

    name: str
    share: int
    ask: Callable[[int], Ask]
    check: Check
    status: int = 200
    model: str = GOOD
    path: str = CHAT
    key: str = KNOWN
    leaves: str = ""
    admitted: bool = True
    garbled: bool = False

    def body(self, ask: Ask) -> bytes:
        """The body of the request."""
        if self.garbled:
            return b'{"model":"bench","messages":[{"role":"user","content":"[[%08d' % ask.rid
        return embedding_request(ask, self.model) if self.path == EMBEDDINGS else request_body(ask, self.model)


class Expected(Answer):
    """The answer to one request of a kind. `left`: the client has hung up on it, as it meant to."""

    __slots__ = ("kind", "left")

    def __init__(self, kind: Kind, rid: int) -> None:
        super().__init__(kind.ask(rid), strict=False)
        self.kind = kind
        self.left = False

    def finish(self, status: int) -> str:
        body = bytes(self._kept)
        if status != self.kind.status:
            return f"status {status} instead of {self.kind.status}: {body[:160]!r}"
        return self.kind.check(self.ask, body)


def equals(expected: Callable[[Ask], bytes]) -> Check:
    """Byte for byte."""

    def check(ask: Ask, body: bytes) -> str:
        return "" if body == expected(ask) else f"{len(body)} bytes that are not the upstream's: {body[:160]!r}"

    return check


def refused(code: str | None) -> Check:
    """One error object with its four keys and this code (None: any)."""

    def check(ask: Ask, body: bytes) -> str:
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            return f"no error object: {body[:160]!r}"
        if set(error) != {"message", "type", "param", "code"}:
            return f"an error without its four keys: {body[:160]!r}"
        return "" if code is None or error["code"] == code else f"code {error['code']} instead of {code}"

    return check


def broken_off(ask: Ask, body: bytes) -> str:
    """All whole events that came, then one error event, and no [DONE]."""
    came = b"".join(chunk(ask.rid, index, False) for index in range(ask.chunks - 1))
    if not body.startswith(came):
        return f"not the events that the upstream sent: {body[:160]!r}"
    rest = body[len(came) :]
    if not (rest.startswith(b'data: {"error"') and rest.endswith(b"\n\n") and rest.count(b"\n\n") == 1) or DONE in body:
        return f"not one error event at the end: {rest[:160]!r}"
    return refused(None)(ask, rest[6:])


def never(ask: Ask, body: bytes) -> str:
    """An answer that was complete before the client could leave is fine too."""
    return ""


def _chat(rid: int) -> Ask:
    return Ask(rid)


def _slow_chat(rid: int) -> Ask:
    return Ask(rid, interval_us=300_000)


def _stream(rid: int) -> Ask:
    return Ask(rid, STREAMED, 8, 1000)


def _stream_with_usage(rid: int) -> Ask:
    return Ask(rid, STREAMED, 8, 1000, include_usage=True)


def _long_stream(rid: int) -> Ask:
    return Ask(rid, STREAMED, 60, 5000)


def _failing(status: int) -> Callable[[int], Ask]:
    return lambda rid: Ask(rid, FAILED, status)


KINDS = (
    Kind("chat", 450, _chat, equals(lambda ask: answer_body(ask.rid))),
    Kind("stream", 110, _stream, equals(stream_body)),
    Kind("stream with usage", 60, _stream_with_usage, equals(stream_body)),
    Kind("embeddings", 110, _chat, equals(lambda ask: embedding_body(ask.rid)), path=EMBEDDINGS),
    Kind("chat of the faulty model", 50, _chat, equals(lambda ask: answer_body(ask.rid)), model=FAULTY),
    Kind("upstream 500", 25, _failing(500), refused("upstream_error"), status=502, model=FAULTY),
    Kind("upstream 429", 25, _failing(429), equals(lambda ask: error_body(ask.rid, 429)), status=429, model=FAULTY),
    Kind("upstream reset", 20, lambda rid: Ask(rid, RESET), refused("upstream_error"), status=502, model=FAULTY),
    Kind("broken stream", 30, lambda rid: Ask(rid, BROKEN, 4, 2000), broken_off, model=FAULTY),
    Kind("gone before the first byte", 20, _slow_chat, never, leaves=BEFORE),
    Kind("gone before the first event", 10, lambda rid: Ask(rid, STREAMED, 60, 5000), never, leaves=BEFORE),
    Kind("gone in mid-stream", 30, _long_stream, never, leaves=AFTER),
    Kind("unknown key", 20, _chat, refused(None), status=401, key=UNKNOWN, admitted=False),
    Kind("unknown model", 15, _chat, refused("model_not_found"), status=404, model="no-such-model", admitted=False),
    Kind("not JSON", 15, _chat, refused(None), status=400, garbled=True, admitted=False),
    Kind("budget spent", 10, _chat, refused("insufficient_quota"), status=429, key=POOR, admitted=False),
)


def sequence(seed: int) -> Iterator[Kind]:
    """Kinds without end: each BLOCK holds exactly its shares, in an order of its own."""
    rng = random.Random(seed)
    block = [kind for kind in KINDS for _ in range(kind.share)]
    assert len(block) == BLOCK
    while True:
        rng.shuffle(block)
        yield from list(block)
