"""Server-sent events as bytes: where whole events end, and what a block of them says. (WHATWG HTML 9.2)

The relay passes blocks of whole events on as they came. Nothing here decodes a stream; the usual block, one or more events that end with
a blank line, costs a few substring searches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import orjson

DONE: Final = b"data: [DONE]\n\n"
MAX_EVENT_BYTES: Final = 1_000_000

# A blank line: two line ends in a row, each of CR LF, LF or CR.
_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n)(?!\Z))")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*("[^"\\\r\n]*(?:\\.[^"\\\r\n]*)*")')


class EventTooLarge(Exception):
    """An event without an end grew past MAX_EVENT_BYTES."""


class Framer:
    """Cuts reads into blocks of whole events. Holds back what is unfinished, at most MAX_EVENT_BYTES."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        """All whole events that are now complete (empty if none), as they came."""
        if self.held:
            data = self.held + data
            self.held = b""
        if data.endswith((b"\n\n", b"\r\n\r\n")):
            return data
        end = -1
        if data.find(b"\r") >= 0:
            for match in _BLANK.finditer(data):
                end = match.end()
        else:
            at = data.rfind(b"\n\n")
            end = at + 2 if at >= 0 else -1
        if end < 0:
            end = 0
        if len(data) - end > MAX_EVENT_BYTES:
            raise EventTooLarge
        self.held = data[end:]
        return data[:end]


def events(block: bytes) -> Iterator[bytes]:
    """The raw events of a block of whole events, each with its closing blank line; joined they are the block."""
    at = 0
    if b"\r" not in block:
        while at < len(block):
            end = block.find(b"\n\n", at)
            end = len(block) if end < 0 else end + 2
            yield block[at:end]
            at = end
        return
    for match in re.finditer(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)", block):
        yield block[at : match.end()]
        at = match.end()
    if at < len(block):
        yield block[at:]


def data_of(event: bytes) -> bytes | None:
    """The data of one raw event: its data lines joined by LF; None for a comment or an event without data."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    lines = []
    for line in _LINE_END.split(event):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value.removeprefix(b" "))
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None


def has_data(block: bytes) -> bool:
    """Does a block hold a data event (comments and bare fields do not count)?"""
    return block.startswith(b"data:") or block.find(b"\ndata:") >= 0 or block.find(b"\rdata:") >= 0


def is_error(data: bytes) -> bool:
    """Is this event's data an error object (or not JSON at all)? `[DONE]` is neither."""
    if data.strip() == b"[DONE]":
        return False
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return True
    return type(value) is dict and bool(value.get("error"))


class ModelRename:
    """Puts the id that the client asked for in place of the backend's `model`, in the bytes of each event.

    `parent`: the top-level object that holds it, where it does not stand at the top itself. The beginning of the last event
    that was looked through is remembered, so that blocks of events that begin alike cost one `replace`.
    """

    __slots__ = ("_alias", "_needle", "_parent", "_replacement")

    def __init__(self, alias: str, parent: str = "") -> None:
        self._alias = orjson.dumps(alias)
        self._parent = parent
        self._needle = self._replacement = b""

    def apply(self, block: bytes) -> bytes:
        """The block with the first `model` member of each data event renamed."""
        needle = self._needle
        if needle and block.count(needle) == block.count(b'"model"') == block.count(b"data:"):
            return block.replace(needle, self._replacement)
        if b'"model"' not in block:
            return block
        return b"".join(self._rename(event) for event in events(block))

    def _rename(self, event: bytes) -> bytes:
        span = model_within(event, self._parent) if self._parent else top_level_model(event)
        if span is None:
            return event
        _, start, end = span
        self._needle = event[:end]  # from its beginning: where these bytes stand, `model` stands at the same depth
        self._replacement = event[:start] + self._alias
        return event[:start] + self._alias + event[end:]


def top_level_model(text: bytes, at: int = 0) -> tuple[int, int, int] | None:
    """Where the top-level member `"model": "..."` of an event's JSON (or of a JSON answer) stands: its key, its value, its end.

    `at`: where the object begins whose member is looked for, if not at the top.
    """
    depth = 0
    for match in _MODEL.finditer(text, at):
        depth += _depth(text, at, match.start())
        if depth == 1:
            return match.start(), match.start(1), match.end()
        at = match.end()
    return None


def model_within(text: bytes, parent: str) -> tuple[int, int, int] | None:
    """The same for `{"parent": {"model": "..."}}`."""
    depth = at = 0
    for match in re.finditer(rb'(?<!\\)"' + parent.encode() + rb'"\s*:\s*(?=\{)', text):
        depth += _depth(text, at, match.start())
        if depth == 1:
            return top_level_model(text, match.end())
        at = match.start()
    return None


_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)


def _depth(text: bytes, start: int, end: int) -> int:
    """How much deeper `end` lies than `start`, neither of them inside a string."""
    depth = 0
    for match in _STRUCTURE.finditer(text, start, end):
        first = match.group()[0]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
    return depth
