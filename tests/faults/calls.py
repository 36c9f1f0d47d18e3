"""What the fault matrix asks of every endpoint: a request, and the good answer to it, whole and streamed.

An endpoint takes part as soon as the relay's table of routes has its path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.relay.operations import ROUTES
from tests.upstream import chat_answer, chat_chunk

JSON = "application/json"
SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
_BOUNDARY = "b-7f3a"


@dataclass(frozen=True, slots=True)
class Call:
    """One endpoint, streamed or not. `kind`: "whole" (JSON, committed at its end), "stream" (SSE), "raw" (committed at its first byte).
    `upload`: the request is a form with a file under this name.

    `frames` are the events of the good stream, without [DONE]; `good` is the good answer that is not streamed, of type `content_type`.
    `counts`: the answer's usage is 7 and 3 tokens (0 where the endpoint has no completion).
    """

    name: str
    path: str
    fields: dict[str, Any]
    kind: str
    good: bytes
    frames: tuple[bytes, ...] = ()
    protocol: str = "openai"
    content_type: str = JSON
    upload: str = ""
    counts: tuple[int, int] | None = None

    def request(self, model: str) -> tuple[str, bytes]:
        """Content type and body."""
        fields = {"model": model, **self.fields} | ({"stream": True} if self.kind == "stream" else {})
        if not self.upload:
            return JSON, orjson.dumps(fields)
        parts = [
            _part(f'name="{name}"', (value if type(value) is str else orjson.dumps(value).decode()).encode())
            for name, value in fields.items()
        ]
        parts.append(_part(f'name="{self.upload}"; filename="a.wav"', b"RIFF\x00\x01\r\n\r\n--b-7f3\r\n\xff" * 20, "audio/wav"))
        return f"multipart/form-data; boundary={_BOUNDARY}", b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()

    @property
    def upstream_path(self) -> str:
        """Behind the backend's base URL; the tokenize pair stands beside /v1, not below it."""
        path = self.path.removeprefix("/v1")
        return path if path in ("/tokenize", "/detokenize") else "/v1" + path

    @property
    def body(self) -> bytes:
        """What the client receives when all is well."""
        if self.kind != "stream":
            return self.good
        return b"".join(self.frames) + (DONE if self.has_done else b"")

    @property
    def has_done(self) -> bool:
        return self.kind == "stream" and self.protocol == "openai"

    def asked(self, body: bytes) -> Any:
        """The body as the backend must see it, decoded where the gateway may add to it."""
        if not self.has_done:
            return body
        return orjson.loads(body) | {"stream_options": {"include_usage": True}}


def _part(disposition: str, value: bytes, content_type: str = "") -> bytes:
    typed = f"content-type: {content_type}\r\n" if content_type else ""
    return f"--{_BOUNDARY}\r\ncontent-disposition: form-data; {disposition}\r\n{typed}\r\n".encode() + value + b"\r\n"


def data(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def named(kind: str, **fields: Any) -> bytes:
    """An event as the responses and messages protocols write it."""
    return b"event: " + kind.encode() + b"\n" + data({"type": kind, **fields})


_CHAT = (
    data(chat_chunk({"role": "assistant", "content": ""})),
    data(chat_chunk({"content": "né 한국어 "})),
    data(chat_chunk({"content": "\U0001f600"})),
    data(chat_chunk({}, "stop")),
)


def _text(text: str, finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "up", "choices": [choice]}


_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
_TEXT = (data(_text("one ", None)), data(_text("two ", None)), data(_text("three", None)), data(_text("", "stop")))
_RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "model": "up",
    "status": "completed",
    "output": [],
    "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
}
_RESPONSES = (
    named("response.created", sequence_number=0, response=_RESPONSE | {"status": "in_progress", "usage": None}),
    named("response.output_text.delta", sequence_number=1, item_id="i", output_index=0, content_index=0, delta="one "),
    named("response.output_text.delta", sequence_number=2, item_id="i", output_index=0, content_index=0, delta="two"),
    named("response.completed", sequence_number=3, response=_RESPONSE),
)
_MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "up",
    "content": [{"type": "text", "text": "one two"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 7, "output_tokens": 3},
}
_MESSAGES = (
    named("message_start", message=_MESSAGE | {"content": [], "stop_reason": None, "usage": {"input_tokens": 7, "output_tokens": 0}}),
    named("content_block_delta", index=0, delta={"type": "text_delta", "text": "one two"}),
    named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
    named("message_stop"),
)
_SAY = [{"role": "user", "content": "hi"}]


Frames = tuple[bytes, ...]


def _both(name: str, path: str, fields: dict[str, Any], good: Any, frames: Frames, protocol: str = "openai") -> tuple[Call, Call]:
    body = orjson.dumps(good)
    return (
        Call(name, path, fields, "whole", body, protocol=protocol, counts=(7, 3)),
        Call(f"{name}-stream", path, fields, "stream", body, frames, protocol),
    )


def _json(name: str, path: str, fields: dict[str, Any], good: Any, counts: tuple[int, int] | None = None) -> Call:
    return Call(name, path, fields, "whole", orjson.dumps(good), counts=counts)


_EMBEDDING = {"object": "list", "model": "up", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]}
_PICTURE = orjson.dumps({"created": 1, "data": []})
_PARTS = [named("image_generation.partial_image", partial_image_index=number, b64_json="AAAA") for number in range(3)]
_PICTURES = (*_PARTS, named("image_generation.completed", b64_json="BBBB"))
_HEARD = orjson.dumps({"text": "hello there"})
_HEARING = (
    *(named("transcript.text.delta", delta=word) for word in ("one ", "two ", "three")),
    named("transcript.text.done", text="one two three"),
)
_WAV = bytes(range(256)) * 64

ALL = (
    *_both("chat", "/v1/chat/completions", {"messages": _SAY}, chat_answer(), _CHAT),
    *_both("completions", "/v1/completions", {"prompt": "hi"}, _text("one two three", "stop") | {"usage": _USAGE}, _TEXT),
    _json("embeddings", "/v1/embeddings", {"input": "hi"}, _EMBEDDING | {"usage": {"prompt_tokens": 7, "total_tokens": 7}}, (7, 0)),
    _json("tokenize", "/v1/tokenize", {"prompt": "hi"}, {"tokens": [1, 2], "count": 2, "max_model_len": 99}),
    _json("detokenize", "/detokenize", {"tokens": [1, 2]}, {"prompt": "hi"}),
    *_both("responses", "/v1/responses", {"input": "hi"}, _RESPONSE, _RESPONSES, "responses"),
    *_both("messages", "/v1/messages", {"messages": _SAY, "max_tokens": 16}, _MESSAGE, _MESSAGES, "messages"),
    _json("rerank", "/v1/rerank", {"query": "a", "documents": ["a", "b"]}, {"results": [{"index": 0, "relevance_score": 0.5}]}),
    _json("moderations", "/v1/moderations", {"input": "hi"}, {"id": "modr-1", "model": "up", "results": [{"flagged": False}]}),
    Call("images", "/v1/images/generations", {"prompt": "a cat"}, "raw", orjson.dumps({"created": 1, "data": [{"b64_json": "A" * 9000}]})),
    Call("images-stream", "/v1/images/generations", {"prompt": "a cat"}, "stream", _PICTURE, _PICTURES, "raw"),
    Call("image-edits", "/v1/images/edits", {"prompt": "a cat"}, "raw", _PICTURE, upload="image"),
    Call("image-variations", "/v1/images/variations", {"size": "64x64"}, "raw", _PICTURE, upload="image"),
    Call("speech", "/v1/audio/speech", {"input": "hi", "voice": "x"}, "raw", _WAV, content_type="audio/wav"),
    Call("transcriptions", "/v1/audio/transcriptions", {"language": "en"}, "raw", _HEARD, upload="file"),
    Call("transcriptions-stream", "/v1/audio/transcriptions", {"language": "en"}, "stream", _HEARD, _HEARING, "raw", upload="file"),
    Call("translations", "/v1/audio/translations", {}, "raw", _HEARD, upload="file"),
)

CALLS: dict[str, Call] = {call.name: call for call in ALL if call.path.encode() in ROUTES}
