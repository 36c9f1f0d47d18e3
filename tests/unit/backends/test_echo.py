from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import orjson

from backends.base import Call, Headers
from backends.echo import DIMENSIONS, EchoBackend
from backends.errors import BackendError


class Answer:
    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.over = asyncio.Event()

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status

    def on_data(self, data: bytes) -> None:
        self.body += data

    def on_end(self, by_close: bool) -> None:
        self.over.set()

    def on_error(self, error: BackendError) -> None:
        raise AssertionError(error)


async def ask(operation: str, **body: Any) -> Any:
    answer = Answer()
    EchoBackend().open().start(Call("b7", operation, "/x", orjson.dumps({"model": "m", **body}), (), 1), answer)
    await asyncio.wait_for(answer.over.wait(), 5)
    if not body.get("stream"):
        return orjson.loads(answer.body)
    events = answer.body.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events[:-2]]


MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two three"}]


async def test_chat_streamed_equals_unstreamed() -> None:
    whole = await ask("chat", messages=MESSAGES)
    chunks = await ask("chat", messages=MESSAGES, stream=True, stream_options={"include_usage": True})
    assert whole["choices"][0]["message"]["content"] == "one two three"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "one two three"
    assert whole["usage"] == chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]] == [None] * 4 + ["stop"]
    assert whole["system_fingerprint"] == "echo-b7"
    assert all("usage" not in c for c in await ask("chat", messages=MESSAGES, stream=True))


async def test_limits_cut() -> None:
    answer = await ask("chat", messages=MESSAGES, max_tokens=2)
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_completions_and_embeddings() -> None:
    assert (await ask("completions", prompt="a b"))["choices"][0]["text"] == "a b"
    one = await ask("embeddings", input=["a", "b"])
    again = await ask("embeddings", input="b", encoding_format="base64")
    vector = struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(again["data"][0]["embedding"]))
    assert all(abs(x - y) < 1e-6 for x, y in zip(vector, one["data"][1]["embedding"], strict=True))
    assert [item["index"] for item in one["data"]] == [0, 1]


async def test_odd_bodies_are_no_bug() -> None:
    await ask("chat", messages=[{"content": None}, {"content": [{"text": "x"}]}, {}])
    await ask("chat", messages=[], max_tokens="5")
    await ask("embeddings", input=[[1, 2], [3]])
    assert (await ask("rerank"))["error"]["code"] == "not_found"


async def test_a_form_is_refused_unread() -> None:
    answer = Answer()
    EchoBackend().open().start(Call("b7", "transcriptions", "/audio/transcriptions", b"--XyZ\r\n\xff", (), 1), answer)
    await asyncio.wait_for(answer.over.wait(), 5)
    assert (answer.status, orjson.loads(answer.body)["error"]["code"]) == (404, "not_found")
