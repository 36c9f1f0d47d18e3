"""A backend's stream of server-sent events, on its way to the client: whole events pass as they came, a tap watches them.

Pure: bytes in, bytes out. It knows nothing of sockets, clocks or settlement; `relay.attempt` asks it what a block says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from gateway.metering.progress import estimated_tokens
from gateway.relay import answers
from gateway.wire import sse
from gateway.wire.usage import without_usage_events

_SILENT_EVENTS: Final = 4  # at most, before an answer that we see no words in is taken for one whose words we cannot see

if TYPE_CHECKING:
    from gateway.relay.relayed import Relayed
    from gateway.wire.protocols import WireProtocol
    from gateway.wire.usage import Usage


class EventStream:
    """The events of one answer.

    `by_close`: the answer has no length, so only its own words say whether it is complete. `hides_usage`: the usage event was asked for
    by the gateway alone, so the client is not shown it. `relayed`: keeps what is passed on, where its tokens may have to be counted.
    """

    __slots__ = (
        "_by_close",
        "_framer",
        "_hides_usage",
        "_protocol",
        "_rename",
        "_silent",
        "_silent_events",
        "_typed",
        "done",
        "envelope_bytes",
        "events",
        "failed",
        "finished",
        "held_comments",
        "latest",
        "news",
        "relayed",
        "spoken_bytes",
        "usage",
        "usage_at",
    )

    def __init__(
        self, protocol: WireProtocol, by_close: bool, hides_usage: bool, rename: sse.ModelRename | None, relayed: Relayed | None = None
    ) -> None:
        self._protocol = protocol
        self._by_close = by_close
        self._hides_usage = hides_usage
        self._rename = rename
        self._framer = sse.Framer()
        self._silent = not protocol.wordless  # no event with words in it was passed on yet
        self._silent_events = 0
        self._typed = protocol.speaks != b"data:"  # a mark that the model cannot write: in its words quotation marks are escaped
        self.relayed = relayed
        self.events = 0  # that may hold words, from the first that does
        self.spoken_bytes = 0  # of the blocks they came in
        self.envelope_bytes = 0  # what such an event has beside its words
        self.usage_at = -1  # how many events the report on usage covers
        self.news = False  # there is something new in `envelope_bytes` or `usage`
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
        events = block.count(protocol.speaks) if self._typed else _data_lines(block)
        if events:
            if self._silent:
                self._listen(block, events)
            elif self.usage is None or self._typed or block.find(b'"usage"') >= 0 or (events := self._speaking(block)):
                self.events += events
                self.spoken_bytes += len(block)
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
        if self.relayed is not None:
            self.relayed.add(block)
        return block if self._rename is None else self._rename.apply(block)

    @property
    def tokens(self) -> int:
        """About how many were passed on, where nobody says it."""
        return estimated_tokens(self.events, self.spoken_bytes, self.envelope_bytes)

    @property
    def words_bytes(self) -> int:
        """About how much the model wrote of that."""
        return max(0, self.spoken_bytes - self.events * self.envelope_bytes)

    @property
    def reported(self) -> bool:
        """Does the usage cover all that was passed on? (One protocol begins with a report, and some servers make one all the time.)"""
        return self.usage is not None and self.events <= self.usage_at

    def _listen(self, block: bytes, events: int) -> None:
        """The block that may hold the first words: events before these say who speaks, and are no tokens."""
        speaks = self._protocol.speaks
        for event in sse.events(block):
            if speaks in event:
                words_bytes = self._words_bytes(event)
                if words_bytes or self._silent_events == _SILENT_EVENTS:
                    self._silent = False
                    self.news = True
                    self.envelope_bytes = len(event) - words_bytes if words_bytes else 0
                    self.events, self.spoken_bytes = events, len(block)
                    return
                self._silent_events += 1
                events -= 1
            block = block[len(event) :]

    def _speaking(self, block: bytes) -> int:
        """How many events have words, or close the stream: `_cut_done` takes that one off again."""
        count = 0
        for event in sse.events(block):
            data = sse.data_of(event)
            if data is not None and (data.strip() == b"[DONE]" or self._words_bytes(event)):
                count += 1
        return count

    def _words_bytes(self, event: bytes) -> int:
        data = sse.data_of(event)
        try:
            words = self._protocol.words_of(orjson.loads(data)) if data is not None else ()
        except orjson.JSONDecodeError:
            return 0
        return sum([len(text.encode("utf-8", "surrogatepass")) for _, text in words])

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
                if not self._silent:
                    self.events -= 1
                break
            kept.append(event)
        return b"".join(kept)

    def _tap(self, block: bytes) -> bytes:
        if block.count(b'"usage"') == block.count(b'"usage":null') + block.count(b'"usage": null'):
            return block
        self.usage, alone = self._protocol.tap(block, self.usage)
        if alone and not self._silent:
            self.events -= 1
        self.usage_at = self.events
        self.news = True
        return without_usage_events(block) if alone and self._hides_usage else block

    def _says_error(self, block: bytes) -> bool:
        for event in sse.events(block):
            if b'"error"' in event:
                data = sse.data_of(event)
                if data is not None and self._protocol.stream_error_of(data):
                    return True
        return False


def _data_lines(block: bytes) -> int:
    """How many lines of whole events begin with `data:`. (The model may write it too, within a line.)"""
    lines = block.count(b"\ndata:")
    if block.find(b"\r") >= 0:
        lines += block.count(b"\rdata:")
    return lines + 1 if block.startswith(b"data:") else lines
