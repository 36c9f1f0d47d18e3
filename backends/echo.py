"""Type `echo`: answers with what it was asked, at once or after set delays. Deterministic, no network: for tests and load tests.

Chat answers with the content of the last message, completions with the prompt, embeddings with a vector made of the text's digest. Tokens
are words. `system_fingerprint` is `echo-<target>`, so that a client can see which backend answered.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from backends.base import Call, Sink

DIMENSIONS = 8
_OPERATIONS = frozenset(("chat", "completions", "embeddings"))
_CREATED = 1_700_000_000
_SSE = ((b"content-type", b"text/event-stream"),)
_JSON = ((b"content-type", b"application/json"),)


@dataclass
class EchoBackend:
    """`delay_ms` before the answer begins, `chunk_delay_ms` between the chunks of a stream."""

    delay_ms: float = 0
    chunk_delay_ms: float = 0
    asks_usage: bool = True
    ready: bool = True

    def open(self) -> EchoExchange:
        return EchoExchange(self)

    async def close(self) -> None:
        """Nothing is held."""


class EchoExchange:
    """One echo. Implements `backends.base.Exchange`."""

    __slots__ = ("_backend", "_paused", "_pieces", "_sink", "_timer", "over")
    connect_ms: float | None = None
    sent = True

    def __init__(self, backend: EchoBackend) -> None:
        self._backend = backend
        self._timer: asyncio.Handle | None = None
        self._paused = False
        self.over = False

    def start(self, call: Call, sink: Sink) -> None:
        self._sink = sink
        self._pieces = _answer(call)
        self._after(self._backend.delay_ms, self._head)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self.over and self._timer is None:
                self._after(0, self._next)

    def abort(self) -> None:
        self.over = True
        if self._timer is not None:
            self._timer.cancel()

    def _after(self, delay_ms: float, callback: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_ms / 1000, callback) if delay_ms else loop.call_soon(callback)

    def _head(self) -> None:
        status, stream, first = next(self._pieces)
        self._sink.on_head(status, _SSE if stream else _JSON)
        if not self.over:
            self._sink.on_data(first)
            self._continue()

    def _next(self) -> None:
        self._timer = None
        if self._paused:
            return
        piece = next(self._pieces, None)
        if piece is None:
            self.over = True
            self._sink.on_end(False)
            return
        self._sink.on_data(piece[2])
        self._continue()

    def _continue(self) -> None:
        if not self.over:
            self._after(self._backend.chunk_delay_ms, self._next)


def _answer(call: Call) -> Iterator[tuple[int, bool, bytes]]:
    """(status, is a stream, piece of body) for each piece."""
    if call.operation not in _OPERATIONS:  # its body may not even be JSON
        message = f"The echo backend has no operation {call.operation!r}."
        yield 404, False, orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "not_found"}})
        return
    body = orjson.loads(call.body)
    base = {"created": _CREATED, "model": body.get("model"), "system_fingerprint": f"echo-{call.target}"}
    if call.operation == "embeddings":
        yield 200, False, orjson.dumps(_embeddings(body) | {"model": body.get("model")})
    else:
        text, asked = _text(call.operation, body)
        words = _words(text)[: _limit(body)]
        usage = {"prompt_tokens": asked, "completion_tokens": len(words), "total_tokens": asked + len(words)}
        stops = "stop" if len(words) == len(_words(text)) else "length"
        if body.get("stream"):
            yield from _stream(call.operation, base, words, stops, usage, body)
        else:
            yield 200, False, orjson.dumps(_whole(call.operation, base, "".join(words), stops, usage))


def _whole(operation: str, base: dict[str, Any], text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
    if operation == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        return {"id": "chatcmpl-echo", "object": "chat.completion", **base, "choices": [choice], "usage": usage}
    choice["text"] = text
    return {"id": "cmpl-echo", "object": "text_completion", **base, "choices": [choice], "usage": usage}


def _stream(
    operation: str, base: dict[str, Any], words: list[str], finish: str, usage: dict[str, int], body: dict[str, Any]
) -> Iterator[tuple[int, bool, bytes]]:
    wants_usage = (body.get("stream_options") or {}).get("include_usage") is True
    name = (
        {"id": "chatcmpl-echo", "object": "chat.completion.chunk"}
        if operation == "chat"
        else {"id": "cmpl-echo", "object": "text_completion"}
    )

    def chunk(choices: list[dict[str, Any]], total: dict[str, int] | None = None) -> tuple[int, bool, bytes]:
        value = {**name, **base, "choices": choices} | ({"usage": total} if wants_usage else {})
        return 200, True, b"data: " + orjson.dumps(value) + b"\n\n"

    def choice(text: str, finished: str | None, role: bool = False) -> list[dict[str, Any]]:
        if operation == "completions":
            return [{"index": 0, "text": text, "logprobs": None, "finish_reason": finished}]
        delta = ({"role": "assistant"} if role else {}) | ({"content": text} if text or role else {})
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finished}]

    if operation == "chat":
        yield chunk(choice("", None, role=True))
    for word in words:
        yield chunk(choice(word, None))
    yield chunk(choice("", finish))
    if wants_usage:
        yield chunk([], usage)
    yield 200, True, b"data: [DONE]\n\n"


def _text(operation: str, body: dict[str, Any]) -> tuple[str, int]:
    """What to say, and how many tokens were asked with."""
    if operation == "completions":
        prompt = body.get("prompt")
        text = prompt if isinstance(prompt, str) else " ".join(str(part) for part in prompt or [])
        return text, len(_words(text))
    contents = [_content(message.get("content")) for message in body.get("messages") or [] if isinstance(message, dict)]
    return (contents[-1] if contents else ""), sum(len(_words(c)) for c in contents)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _words(text: str) -> list[str]:
    """Words with the space before them, so that joined they are the text up to runs of white space."""
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split())]


def _limit(body: dict[str, Any]) -> int | None:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit if isinstance(limit, int) else None


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    given = body.get("input")
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    as_base64 = body.get("encoding_format") == "base64"
    data, tokens = [], 0
    for index, value in enumerate(inputs):
        vector = _vector(str(value))
        tokens += len(value) if isinstance(value, list) else len(_words(str(value)))
        encoded = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode() if as_base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": encoded})
    return {"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _vector(text: str) -> list[float]:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    raw = [value / 32768 for value in struct.unpack(f"<{DIMENSIONS}h", digest[: 2 * DIMENSIONS])]
    norm = sum(v * v for v in raw) ** 0.5 or 1.0
    return [v / norm for v in raw]
