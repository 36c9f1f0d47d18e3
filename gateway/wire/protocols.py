"""The stream protocols that the relay carries: what ends a stream, what an error looks like in it, where its token counts stand.

    OPENAI      chat, completions           data: {...}; data: [DONE] at the end
    RESPONSES   responses                   event: T, data: {"type": T, ...}; response.completed | incomplete | failed at the end, no [DONE]
    MESSAGES    messages (Anthropic)        event: T, data: {"type": T, ...}; message_stop at the end, no [DONE]
    RAW         audio, images               bytes of the backend's own type; where they are events: typed ones, no [DONE]

Operations that do not stream have OPENAI's error shapes (INPUT: with more spellings of usage). One object per protocol, chosen once per
request as `Operation.protocol`. They hold no state: what a stream has said so far is passed in.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from gateway.wire import sse
from gateway.wire import usage as wire_usage
from gateway.wire.usage import Usage
from gateway.wire.words import Words, messages_words, openai_words, responses_words

_SEQUENCE = re.compile(rb'(?<!\\)"sequence_number"\s*:\s*(\d{1,15})')


class WireProtocol:
    """OpenAI's chat and completions; the base of the others.

    `done` is what closes a clean stream that did not close itself; empty where the protocol has no such thing, and then nothing is ever cut
    or added (`has_done`). `speaks` stands once in each event that may hold words of the model; `wordless`: none does, or none is counted.
    """

    name: str = "openai"
    speaks: bytes = b"data:"
    wordless: bool = False
    done: bytes = sse.DONE
    has_done: bool = True
    terminal: re.Pattern[bytes] = re.compile(rb'(?<!\\)"finish_reason"\s*:\s*"|(?:\A|[\r\n])data: ?\[DONE\]')

    def error_event(self, body: dict[str, Any], last: bytes = b"") -> bytes:
        """One event that says why the stream ends. `body` is `GatewayError.body()`, `last` the last block that was relayed."""
        return b"data: " + orjson.dumps(body) + b"\n\n"

    def error_body(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole error answer, in words that this protocol's clients know; always a superset of OpenAI's four keys."""
        return body

    def stream_error_of(self, data: bytes) -> bool:
        """Is this event's data an error of the backend (or not JSON at all)?"""
        return sse.is_error(data)

    def error_message(self, data: bytes) -> str | None:
        """What such an event says, in the backend's words."""
        value = _object(data) or {}
        error = value.get("error")
        message = error.get("message") if type(error) is dict else error or value.get("message")
        return message if type(message) is str and message else None

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

    def words_of(self, value: Any) -> Words:
        """What the model wrote, in the parsed data of an event or in a whole parsed answer."""
        return openai_words(value)

    def rename(self, alias: str) -> sse.ModelRename | None:
        """What puts the client's model id into the events; None where they carry none."""
        return sse.ModelRename(alias)


class InputProtocol(WireProtocol):
    """What only reads, and does not stream: embeddings, rerank, moderations."""

    def usage_of(self, value: Any) -> Usage | None:
        return wire_usage.usage_of_input(value)


class TypedProtocol(WireProtocol):
    """Events that say in `type` what they are, and end with one of some type. The base of the rest."""

    done = b""
    has_done = False

    def stream_error_of(self, data: bytes) -> bool:
        value = _object(data)
        return sse.is_error(data) if value is None else value.get("type") == "error" or bool(value.get("error"))

    def tap(self, block: bytes, before: Usage | None = None) -> tuple[Usage | None, bool]:
        return wire_usage.tap(block)[0] or before, False


class ResponsesProtocol(TypedProtocol):
    """OpenAI's responses: typed events, numbered."""

    name = "responses"
    speaks = b'.delta"'
    terminal = re.compile(rb'(?<!\\)"type"\s*:\s*"response\.(?:completed|incomplete|failed)"')

    def error_event(self, body: dict[str, Any], last: bytes = b"") -> bytes:
        """OpenAI's ResponseErrorEvent, with the object `error` beside it that its own SDK raises on."""
        numbers = _SEQUENCE.findall(last)
        error = body["error"]
        number = int(numbers[-1]) + 1 if numbers else 0
        event = {"type": "error", "sequence_number": number, "code": error["code"], "message": error["message"], "param": error["param"]}
        return _typed("error", {**event, "error": error})

    def stream_error_of(self, data: bytes) -> bool:
        """An `error` event; or a response that failed, unless by what the client sent."""
        value = _object(data)
        if value is None or value.get("type") != "response.failed":
            return super().stream_error_of(data)
        code = _member(_member(value, "response"), "error").get("code")
        return not (type(code) is str and code.startswith(_CLIENTS_FAULT))

    def error_message(self, data: bytes) -> str | None:
        value = _object(data) or {}
        message = _member(_member(value, "response"), "error").get("message") or value.get("message")
        return message if type(message) is str else super().error_message(data)

    def words_of(self, value: Any) -> Words:
        return responses_words(value)

    def rename(self, alias: str) -> sse.ModelRename | None:
        return sse.ModelRename(alias, "response")


class MessagesProtocol(TypedProtocol):
    """Anthropic's messages."""

    name = "messages"
    speaks = b'"content_block_delta"'
    terminal = re.compile(rb'(?<!\\)"type"\s*:\s*"message_stop"')

    def error_event(self, body: dict[str, Any], last: bytes = b"") -> bytes:
        return _typed("error", self.error_body(body))

    def error_body(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"type": "error", "error": {...}}` with Anthropic's word as the error's type, and our four keys in it."""
        error = body["error"]
        if error["type"] in _ANTHROPIC:
            kind = _ANTHROPIC_CODES.get(error["code"], error["type"])
        else:
            kind = _ANTHROPIC_CODES.get(error["code"]) or _ANTHROPIC_TYPES.get(error["type"], "api_error")
        return {"type": "error", **body, "error": {**error, "type": kind}}

    def tap(self, block: bytes, before: Usage | None = None) -> tuple[Usage | None, bool]:
        """The prompt's tokens come with the first event, the answer's with one of the last."""
        usage = before
        for value in wire_usage.with_usage(block):
            usage = wire_usage.merged(usage, wire_usage.usage_of_message(value))
        return usage, False

    def usage_of(self, value: Any) -> Usage | None:
        return wire_usage.usage_of_message(value)

    def words_of(self, value: Any) -> Words:
        return messages_words(value)

    def rename(self, alias: str) -> sse.ModelRename | None:
        return sse.ModelRename(alias, "message")


class RawProtocol(TypedProtocol):
    """Audio and images. Usually no events at all; those of a `stream` end with a typed event."""

    name = "raw"
    wordless = True
    terminal = re.compile(
        rb'(?<!\\)"type"\s*:\s*"(?:transcript\.text\.done|speech\.audio\.done|image_(?:generation|edit)\.completed)"'
        rb"|(?:\A|[\r\n])data: ?\[DONE\]"
    )

    def error_event(self, body: dict[str, Any], last: bytes = b"") -> bytes:
        """For a stream of events only: in other bytes nothing can be said, and the connection must be broken off."""
        return _typed("error", {"type": "error", **body})

    def rename(self, alias: str) -> sse.ModelRename | None:
        return None


def _typed(kind: str, value: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if type(value) is dict else None


def _member(value: dict[str, Any], name: str) -> dict[str, Any]:
    """The object under a name; an empty one where there is none."""
    found = value.get(name)
    return found if type(found) is dict else {}


# Codes of a failed response that name the client's own input (OpenAI's ResponseErrorCode).
_CLIENTS_FAULT = ("invalid_", "image_", "empty_image", "unsupported_image", "failed_to_download_image")

# Anthropic's error types, and which of ours they are.
_ANTHROPIC = frozenset(
    "invalid_request_error authentication_error billing_error permission_error not_found_error request_too_large rate_limit_error "
    "api_error timeout_error overloaded_error".split()
)
_ANTHROPIC_TYPES = {"rate_limit_exceeded": "rate_limit_error", "insufficient_quota": "rate_limit_error"}
_ANTHROPIC_CODES = {
    "invalid_api_key": "authentication_error",
    "permission_denied": "permission_error",
    "not_found": "not_found_error",
    "model_not_found": "not_found_error",
    "operation_not_supported": "not_found_error",
    "request_too_large": "request_too_large",
    "upstream_unavailable": "overloaded_error",
    "overloaded": "overloaded_error",
    "no_backend_available": "overloaded_error",
    "upstream_connect_timeout": "timeout_error",
    "upstream_first_byte_timeout": "timeout_error",
    "upstream_idle_timeout": "timeout_error",
    "upstream_total_timeout": "timeout_error",
}

OPENAI = WireProtocol()
INPUT = InputProtocol()
RESPONSES = ResponsesProtocol()
MESSAGES = MessagesProtocol()
RAW = RawProtocol()
