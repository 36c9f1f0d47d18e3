"""The stream protocols that the relay carries: what ends a stream, what an error looks like in it, where its token counts stand.

    OPENAI      chat, completions           data: {...}; data: [DONE] at the end
    RESPONSES   responses                   event: T, data: {"type": T, ...}; response.completed | incomplete | failed at the end, no [DONE]
    MESSAGES    messages (Anthropic)        event: T, data: {"type": T, ...}; message_stop at the end, no [DONE]
    RAW         audio, images               bytes of the backend's own type; where they are events: typed ones, no [DONE]

Operations that do not stream have OPENAI's error shapes. One object per protocol, chosen once per request by `Operation.protocol`. They
hold no state: what a stream has said so far is passed in.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from gateway.wire import sse
from gateway.wire import usage as wire_usage
from gateway.wire.usage import Usage

_SEQUENCE = re.compile(rb'(?<!\\)"sequence_number"\s*:\s*(\d{1,15})')


class WireProtocol:
    """OpenAI's chat and completions; the base of the others.

    `done` is what closes a clean stream that did not close itself; empty where the protocol has no such thing, and then nothing is ever cut
    or added (`has_done`).
    """

    name: str = "openai"
    done: bytes = sse.DONE
    has_done: bool = True
    terminal: re.Pattern[bytes] = re.compile(rb'(?<!\\)"finish_reason"\s*:\s*"|data: ?\[DONE\]')

    def error_event(self, body: dict[str, Any], last: bytes = b"") -> bytes:
        """One event that says why the stream ends. `body` is `GatewayError.body()`, `last` the last block that was relayed."""
        return b"data: " + orjson.dumps(body) + b"\n\n"

    def error_body(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole error answer, in words that this protocol's clients know; always a superset of OpenAI's four keys."""
        return body

    def stream_error_of(self, data: bytes) -> bool:
        """Is this event's data an error of the backend (or not JSON at all)?"""
        return sse.is_error(data)

    def is_terminal(self, block: bytes) -> bool:
        """Does a block of whole events say that the answer is complete?"""
        return self.terminal.search(block) is not None

    def tap(self, block: bytes, before: Usage | None = None) -> tuple[Usage | None, bool]:
        """What is known of the usage after this block, and whether some event of it says nothing else."""
        found, alone = wire_usage.tap(block)
        return found or before, alone

    def usage_of(self, value: Any) -> Usage | None:
        """The usage in a whole parsed answer."""
        return wire_usage.usage_of(value)

    def rename(self, alias: str) -> sse.ModelRename | None:
        """What puts the client's model id into the events; None where they carry none."""
        return sse.ModelRename(alias)


class ResponsesProtocol(WireProtocol):
    """OpenAI's responses: typed events, numbered."""

    name = "responses"
    done = b""
    has_done = False
    terminal = re.compile(rb'(?<!\\)"type"\s*:\s*"response\.(?:completed|incomplete|failed)"')


class MessagesProtocol(WireProtocol):
    """Anthropic's messages."""

    name = "messages"
    done = b""
    has_done = False
    terminal = re.compile(rb'(?<!\\)"type"\s*:\s*"message_stop"')


class RawProtocol(WireProtocol):
    """Audio and images. Usually no events at all; those of a `stream` end with a typed event."""

    name = "raw"
    done = b""
    has_done = False


OPENAI = WireProtocol()
RESPONSES = ResponsesProtocol()
MESSAGES = MessagesProtocol()
RAW = RawProtocol()
