"""What is said in one request whose content is logged: gathered while it runs, handed over when it ends, however that is.

By reference: the request's body as it came, and the pieces of the answer that go to the client. Each side is bounded, and so is what all
requests together hold here: a share of its own, beside the memory that bodies may take, so that nobody's request is refused for it.
Where nobody asked for it, none of this exists.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway.metering.spool import FULL, Entry
from gateway.relay.operations import OPERATIONS
from gateway.relay.relayed import Relayed, texts_of_answer

if TYPE_CHECKING:
    from gateway.metering.record import UsageRecord
    from gateway.runtime import Contents, Relay

SHARE: Final = 4
"""The content of all requests takes at most one part in so many of what bodies may take."""
HEADER: Final = b"x-gateway-content-log: on\r\n"
_MEDIA_TYPE = re.compile(rb"\s*([a-z0-9][a-z0-9.+_-]{0,60}/[a-z0-9][a-z0-9.+_-]{0,60})\s*(?:;|$)")
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_BLOCK_BYTES: Final = 65_000  # enough for `Relayed` to pack each
_TYPE_LINE: Final = b"content-type: "


class Content:
    """Of one request, from its admission to its end."""

    __slots__ = (
        "_answer",
        "_answer_bytes",
        "_answer_room",
        "_answer_type",
        "_contents",
        "_full",
        "_held_bytes",
        "_relay",
        "_request",
        "_request_bytes",
        "_request_type",
    )

    def __init__(self, relay: Relay, contents: Contents, body: bytes, content_type: bytes) -> None:
        """`content_type`: what the body was read as, whatever the client called it."""
        self._relay = relay
        self._contents = contents
        self._held_bytes = 0
        self._full = False
        self._request_type = media_type(content_type)
        self._request_bytes = len(body)
        self._request: list[bytes] | None = None
        self._answer: list[bytes] | None = []
        self._answer_room = contents.max_bytes
        self._answer_bytes = 0
        self._answer_type = ""
        if is_text(self._request_type):
            kept = body if len(body) <= contents.max_bytes else body[: contents.max_bytes]
            if self._weigh(len(kept)):
                self._request = [kept]

    def begin_answer(self, lines: bytes) -> bytes:
        """The head's lines are known: what kind of answer follows. They come back with one that tells the client of this."""
        if lines.startswith(_TYPE_LINE):
            end = lines.find(b"\r\n")
            self._answer_type = media_type(lines[len(_TYPE_LINE) : end])
        if not is_text(self._answer_type):
            self._answer = None
        return lines + HEADER

    def add(self, data: bytes) -> None:
        """A piece of the answer goes to the client."""
        size = len(data)
        self._answer_bytes += size
        answer = self._answer
        if answer is None or not size or not self._answer_room:
            return
        if size > self._answer_room:
            data = data[: self._answer_room]
            size = self._answer_room
        if self._weigh(size):
            self._answer_room -= size
            answer.append(data)

    def finish(self, record: UsageRecord) -> None:
        """The request is over, and its record final."""
        entry = Entry(
            record.request_id,
            record.started_at,
            record.key_id,
            record.user_id,
            record.team_id,
            record.model,
            record.operation,
            record.status,
            record.ending,
        )
        entry.request_type, entry.answer_type = self._request_type, self._answer_type
        entry.request_bytes, entry.answer_bytes = self._request_bytes, self._answer_bytes
        entry.request, entry.answer = self._request, self._answer
        entry.size_bytes = self._held_bytes
        if self._full:
            entry.drop(FULL)
        self._let_go()
        self._contents.keep(entry)

    def _weigh(self, size: int) -> bool:
        """False: the process holds as much as it may. Nothing of this request is kept then: its room is better used by others."""
        relay = self._relay
        if (relay.content_bytes + size) * SHARE > relay.max_held_bytes:
            self._let_go()
            self._full = True
            return False
        relay.content_bytes += size
        self._held_bytes += size
        return True

    def _let_go(self) -> None:
        self._request = self._answer = None
        self._answer_room = 0
        self._relay.content_bytes -= self._held_bytes
        self._held_bytes = 0


def media_type(value: bytes) -> str:
    """The bare type of a Content-Type; empty where it is none. What else stands there is not kept: it may be anything."""
    found = _MEDIA_TYPE.match(value.lower())
    return found[1].decode("ascii") if found is not None else ""


def is_text(kind: str) -> bool:
    """Is such a body kept? (Of sounds, images and forms with files only the size is.)"""
    return kind.startswith("text/") or "json" in kind or kind == ""


def words_of(operation: str, answer_type: str, answer: bytes) -> list[str] | None:
    """What the model said, each choice in one text, of an answer as it went over the wire; None: that cannot be seen in it."""
    found = OPERATIONS.get(operation)
    if found is None or not found.generates:
        return None
    if answer_type != "text/event-stream":
        return texts_of_answer(found.protocol, answer)
    kept = Relayed(found.protocol)
    for block in _blocks(answer):
        kept.add(block)
    return kept.texts()


def _blocks(stream: bytes) -> list[bytes]:
    """Of whole events. Small ones: compiled code lets no other thread run but where it unpacks one, and the loop has requests to serve."""
    blocks, start = [], 0
    while len(stream) - start > _BLOCK_BYTES:
        end = _EVENT_END.search(stream, start + _BLOCK_BYTES)
        if end is None:
            break
        blocks.append(stream[start : end.end()])
        start = end.end()
    blocks.append(stream[start:])
    return blocks
