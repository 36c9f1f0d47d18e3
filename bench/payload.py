"""The bytes of the benchmark: requests as the driver sends them, answers as the mock upstream gives them.

Both processes build them here, so the driver knows every byte that must reach it. A request carries a
marker in its first message, `[[RID MODE CHUNKS INTERVAL_US]]`, which survives routers that parse and
re-write the JSON around it: RID is eight digits and comes back in the answer (an answer that belongs to
somebody else is found out), MODE is one of the letters named below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNSTREAMED, STREAMED, HELD = "u", "s", "h"
FAILED, RESET, BROKEN = "f", "r", "b"  # an error status, a connection reset before the answer, a stream that breaks off
MARKER = re.compile(rb"\[\[(\d{8}) ([ushfrb]) (\d+) (\d+)\]\]")
ANSWER_BYTES = 420
CHUNK_BYTES = 176
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks of the mock upstream. `interval_us` 0 = one chunk per turn of the loop.

    `chunks` of a FAILED answer is its status, of a BROKEN stream the number of the one that does not come.
    """

    rid: int
    mode: str = UNSTREAMED
    chunks: int = 0
    interval_us: int = 0
    include_usage: bool = False


def request_body(ask: Ask, model: str, prompt_bytes: int = 0) -> bytes:
    """The JSON body of a chat request: about 200 bytes, or `prompt_bytes` more of prompt text."""
    marker = f"[[{ask.rid:08d} {ask.mode} {ask.chunks} {ask.interval_us}]]"
    stream = "" if ask.mode == UNSTREAMED else ',"stream":true'
    if ask.include_usage:
        stream += ',"stream_options":{"include_usage":true}'
    text = f"{marker} You are terse. Say in one sentence what a gateway for models does for a team." + _filler(prompt_bytes)
    messages = f'[{{"role":"user","content":"{text}"}}]'
    return f'{{"model":"{model}"{stream},"messages":{messages},"temperature":0,"max_tokens":64}}'.encode()


def _filler(size_bytes: int) -> str:
    words = " the quick brown fox jumps over the lazy dog and back again"
    return (words * (size_bytes // len(words) + 1))[:size_bytes]


def embedding_request(ask: Ask, model: str) -> bytes:
    """The JSON body of an embeddings request."""
    return f'{{"model":"{model}","input":["[[{ask.rid:08d} {ask.mode} {ask.chunks} {ask.interval_us}]] to be found"]}}'.encode()


def embedding_body(rid: int) -> bytes:
    """The answer to embeddings request `rid`."""
    return _EMBEDDING % (rid, rid % 1000)


def error_body(rid: int, status: int) -> bytes:
    """A backend's own error, in the shape of OpenAI's."""
    return _ERROR % (rid, status)


_EMBEDDING = (
    b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[%d.5,0.%03d,-0.25,0.125,0.0625,1.5,2.5,-3.5]}],'
    b'"model":"bench","usage":{"prompt_tokens":9,"total_tokens":9}}'
)
_ERROR = b'{"error":{"message":"request %d gets status %d, as it asked","type":"server_error","param":null,"code":"as_asked"}}'


def answer_body(rid: int) -> bytes:
    """The unstreamed answer to request `rid`: exactly ANSWER_BYTES of JSON with usage."""
    return _ANSWER_HEAD + b"%08d" % rid + _ANSWER_MIDDLE + b"%08d" % rid + _ANSWER_TAIL


_ANSWER_HEAD = b'{"id":"chatcmpl-'
_ANSWER_MIDDLE = (
    b'","object":"chat.completion","created":1767225600,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"rid-'
)
_ANSWER_END = b'"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":31,"completion_tokens":17,"total_tokens":48}}'
_ANSWER_TEXT = b" It puts one address, one set of keys and one bill in front of all models, and it keeps exact accounts of them all."
_ANSWER_ROOM = ANSWER_BYTES - len(_ANSWER_HEAD) - len(_ANSWER_MIDDLE) - len(_ANSWER_END) - 16
_ANSWER_TAIL = (_ANSWER_TEXT * 2)[:_ANSWER_ROOM].ljust(_ANSWER_ROOM, b".") + _ANSWER_END


def chunk(rid: int, index: int, last: bool) -> bytes:
    """SSE data event number `index` of stream `rid`: CHUNK_BYTES, numbered. The first is longer by its role."""
    if last:
        return _LAST_CHUNK % (rid, index)
    return (_CHUNK if index else _FIRST_CHUNK) % (rid, index)


def usage_chunk(rid: int, chunks: int) -> bytes:
    """The frame that follows the last chunk when the request asked for `include_usage`."""
    return _USAGE_CHUNK % (rid, chunks, 31 + chunks)


def stream_body(ask: Ask) -> bytes:
    """Every byte of the stream that answers `ask`, as a faithful relay hands it on."""
    events = [chunk(ask.rid, index, index == ask.chunks - 1) for index in range(ask.chunks)]
    if ask.include_usage:
        events.append(usage_chunk(ask.rid, ask.chunks))
    events.append(DONE)
    return b"".join(events)


_CHUNK_HEAD = b'data: {"id":"cc-%08d","object":"chat.completion.chunk","created":1767225600,"model":"bench","choices":['


def _chunk_template(before: bytes, after: bytes) -> bytes:
    """A %-template (rid, index) of one event, padded inside its content so that the event is CHUNK_BYTES long."""
    head = _CHUNK_HEAD + before + b"n%06d"
    tail = after + b"}]}\n\n"
    return head + b"." * (CHUNK_BYTES - len(head % (0, 0)) - len(tail)) + tail


_FIRST_CHUNK = _chunk_template(b'{"index":0,"delta":{"role":"assistant","content":"', b'"},"finish_reason":null')
_CHUNK = _chunk_template(b'{"index":0,"delta":{"content":"', b'"},"finish_reason":null')
_LAST_CHUNK = _chunk_template(b'{"index":0,"delta":{"content":"', b'"},"finish_reason":"stop"')
_USAGE_CHUNK = _CHUNK_HEAD + b'],"usage":{"prompt_tokens":31,"completion_tokens":%d,"total_tokens":%d}}\n\n'
