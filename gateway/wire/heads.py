"""HTTP/1.1 answer heads as bytes: status lines, error answers, the headers that pass from a backend."""

from __future__ import annotations

import http
import math
from typing import Final

import orjson

from gateway.errors import GatewayError
from gateway.wire.protocols import OPENAI, WireProtocol


def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES = {status: _status_line(status) for status in range(100, 600)}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON: Final = b"content-type: application/json\r\n"
SSE: Final = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
CHUNKED: Final = b"transfer-encoding: chunked\r\n"
CLOSE: Final = b"connection: close\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


def error_answer(error: GatewayError, protocol: WireProtocol = OPENAI) -> tuple[bytes, bytes]:
    """(header lines, body) of an error in the protocol's shape."""
    lines = JSON
    if error.retry_after_s is not None:
        lines += b"retry-after: %d\r\n" % max(0, math.ceil(error.retry_after_s))
    if error.retry is not None:
        lines += b"x-should-retry: %b\r\n" % (b"true" if error.retry else b"false")
    return lines, orjson.dumps(protocol.error_body(error.body()))


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def safe_value(value: bytes) -> bool:
    """May this header value of a backend be repeated to the client?"""
    return len(value) < 1024 and all(byte >= 0x20 and byte != 0x7F for byte in value)
