"""A backend's stream of server-sent events, on its way to the client: whole events pass as they came, a tap watches them.

Pure: bytes in, bytes out. It knows nothing of sockets, clocks or settlement; `relay.attempt` asks it what a block says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.relay import answers
from gateway.wire import sse
from gateway.wire.usage import without_usage_events

if TYPE_CHECKING:
    from gateway.wire.protocols import WireProtocol
    from gateway.wire.usage import Usage


class EventStream:
    """The events of one answer.

    `by_close`: the answer has no length, so only its own words say whether it is complete. `hides_usage`: the usage event was asked for
    by the gateway alone, so the client is not shown it.
    """

    __slots__ = (
        "_by_close",
        "_framer",
        "_hides_usage",
        "_protocol",
        "_rename",
        "data_events",
        "done",
        "failed",
        "finished",
        "held_comments",
        "latest",
        "usage",
    )

    def __init__(self, protocol: WireProtocol, by_close: bool, hides_usage: bool, rename: sse.ModelRename | None) -> None:
        self._protocol = protocol
        self._by_close = by_close
        self._hides_usage = hides_usage
        self._rename = rename
        self._framer = sse.Framer()
        self.data_events = 0
        self.done = False  # the protocol's closing [DONE] came
        self.failed = False  # the backend said in an event that it failed
        self.finished = False  # some event said that the answer is complete; looked for only where nothing else says so
        self.held_comments = b""  # what came before the first data event
        self.latest = b""  # the last block, where the protocol numbers its events
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """The whole events that are complete now. `sse.EventTooLarge` where one never ends."""
        return self._framer.feed(data)

    def first_data(self, block: bytes) -> bytes | None:
        """The data of the first data event. None while there are only comments: they are held until something follows them."""
        for event in sse.events(block):
            data = sse.data_of(event)
            if data is not None:
                return data
        self.held_comments += block
        if len(self.held_comments) > sse.MAX_EVENT_BYTES:
            raise sse.EventTooLarge
        return None

    def is_error(self, data: bytes) -> bool:
        """Does an event's data say that the backend failed (or is it nothing that the protocol knows)?"""
        return self._protocol.stream_error_of(data)

    def pass_on(self, block: bytes) -> bytes:
        """What the client gets of a block of whole events."""
        protocol = self._protocol
        self.data_events += block.count(b"data:")
        if self._by_close and not self.finished and protocol.is_terminal(block):
            self.finished = True
        if not protocol.has_done:
            self.latest = block
        elif block.find(b"[DONE]") >= 0:  # `in` would first take the bytes for a number, and fail: twice the time
            block = self._cut_done(block)
        if block.find(b'"usage"') >= 0:
            block = self._tap(block)
        if block.find(b'"error"') >= 0 and self._says_error(block):
            self.failed = True
        return block if self._rename is None else self._rename.apply(block)

    def last(self) -> bytes:
        """The backend's message is over: an event that was whole but for its blank line."""
        rest = self._framer.held
        if not rest or self.done:
            return b""
        if not rest.endswith(b"\r\r"):  # a whole event: it was held because a line feed might have followed
            rest = rest.rstrip(b"\r\n") + b"\n\n"
        data = sse.data_of(rest)
        if data is None or not (data.strip() == b"[DONE]" or answers.is_json(data)):
            return b""
        return rest

    @property
    def complete(self) -> bool:
        """Does what came by itself say that nothing is missing?"""
        return not self._by_close or self.done or self.finished

    def _cut_done(self, block: bytes) -> bytes:
        kept = []
        for event in sse.events(block):
            data = sse.data_of(event)
            if data is not None and data.strip() == b"[DONE]":
                self.done = True
                break
            kept.append(event)
        return b"".join(kept)

    def _tap(self, block: bytes) -> bytes:
        if block.count(b'"usage"') == block.count(b'"usage":null') + block.count(b'"usage": null'):
            return block
        self.usage, alone = self._protocol.tap(block, self.usage)
        return without_usage_events(block) if alone and self._hides_usage else block

    def _says_error(self, block: bytes) -> bool:
        for event in sse.events(block):
            if b'"error"' in event:
                data = sse.data_of(event)
                if data is not None and self._protocol.stream_error_of(data):
                    return True
        return False
