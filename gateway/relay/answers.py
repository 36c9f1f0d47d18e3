"""What a whole (unstreamed) answer of a backend becomes: passed on, rewrapped, or counted as the backend's failure."""

from __future__ import annotations

import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway.errors import GatewayError, InternalError, InvalidRequest, Unavailable, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from gateway.wire import heads, sse
from gateway.wire.usage import tail_value

if TYPE_CHECKING:
    from backends.base import Headers
    from gateway.relay.attempt import Attempt
    from gateway.relay.flow import Flow
    from gateway.wire.usage import Usage

# 401, 402, 403, 407: the backend refuses *our* credential or account. That is never the client's to mend.
_OURS: Final = frozenset((401, 402, 403, 407))
_BUSY: Final = frozenset((503, 529))
_CLIENTS: Final = frozenset((400, 404, 413, 422))
_FULL_PARSE_BELOW: Final = 1_000_000
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"|response\.completed|message_stop')
_OVERFLOW: Final = re.compile(r"maximum context length is \d+ tokens")


def take(flow: Flow, attempt: Attempt, body: bytes, by_close: bool) -> None:
    """The whole answer of one attempt is here; the flow goes on accordingly. `by_close`: nothing but its JSON says that it is whole."""
    status, headers = attempt.status, attempt.headers
    if 200 <= status < 300:
        _take_success(flow, attempt, body, by_close)
    elif status in _BUSY:
        retry_after_s = _retry_after_s(headers)
        message = f"The backend {flow.backend_name} is overloaded or unavailable; try again later."
        if retry_after_s is not None:
            flow.rest(retry_after_s)
        flow.failed(UpstreamBusy(message, retry_after_s=retry_after_s), f"{status}")
    elif status < 400 or status >= 500 or status in _OURS:
        flow.failed(UpstreamFailed(f"The backend {flow.backend_name} answered with status {status}."), f"{status}")
    elif flow.without_stream_options(status) or (status == 429 and flow.limited(_retry_after_s(headers))):
        return
    else:
        lines = heads.JSON
        for name in (b"retry-after", b"retry-after-ms"):
            value = header(headers, name)
            if value and heads.safe_value(value):
                lines += name + b": " + value + b"\r\n"
        flow.answer(status, lines, _error_body(flow, status, unsaid(attempt, body)), None, "rejected")


def _take_success(flow: Flow, attempt: Attempt, body: bytes, by_close: bool) -> None:
    value: Any = None
    if by_close or len(body) < _FULL_PARSE_BELOW:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        fine = type(value) is dict or type(value) is list
    else:
        stripped = body.strip()
        fine = stripped[:1] == b"{" and stripped[-1:] == b"}"
        value = tail_value(stripped) if fine else None
    if not fine:
        flow.failed(UpstreamFailed(f"The backend {flow.backend_name} answered with something that is not JSON."), "garbage")
        return
    if attempt.client_model is not None:
        span = sse.top_level_model(body)
        if span is not None:
            body = body[: span[1]] + orjson.dumps(attempt.client_model) + body[span[2] :]
    flow.answer(attempt.status, heads.JSON, body, flow.request.operation.protocol.usage_of(value), "success")


def raw_lines(headers: Headers) -> bytes:
    """What the client is told of a body that passes as it comes: what kind it is, and under which name to keep it."""
    lines = b""
    for name in (b"content-type", b"content-disposition"):
        value = header(headers, name)
        if value and heads.safe_value(value):
            lines += name + b": " + value + b"\r\n"
    return lines if lines.startswith(b"content-type") else b"content-type: application/octet-stream\r\n" + lines


def raw_usage(flow: Flow, tail: bytes) -> Usage | None:
    """The usage at the end of a JSON body of which only the end was kept."""
    return flow.request.operation.protocol.usage_of(tail_value(tail.strip()))


def unsaid(attempt: Attempt, words: bytes) -> bytes:
    """A backend's words without the credential that it was sent: some repeat what they do not accept."""
    target = attempt.target
    return words.replace(target.secret, b"[secret]") if target is not None and target.secret else words


def _error_body(flow: Flow, status: int, body: bytes) -> bytes:
    """A backend's 4xx: as it is where it has OpenAI's four keys, else rewrapped in them."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    error = value.get("error") if type(value) is dict else None
    if type(error) is dict and error.keys() >= {"message", "type", "param", "code"} and not isinstance(error["code"], int):
        return body
    message = _message_of(value) or f"The backend refused the request with status {status}."
    source = error if type(error) is dict else {}
    code = source.get("code")
    if _OVERFLOW.search(message):
        code = "context_length_exceeded"
    wrapped = {
        "message": message,
        "type": source.get("type") if isinstance(source.get("type"), str) else _TYPES.get(status, "invalid_request_error"),
        "param": source.get("param") if isinstance(source.get("param"), str) else None,
        "code": code if isinstance(code, str) else _CODES.get(status),
    }
    return orjson.dumps(flow.request.operation.protocol.error_body({"error": wrapped}))


_TYPES = {429: "rate_limit_exceeded"}
_CODES = {404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}


def _message_of(value: Any) -> str | None:
    """The sentence in an error body of OpenAI's, FastAPI's or another common shape."""
    if type(value) is not dict:
        return None
    error = value.get("error")
    candidates = (error.get("message") if type(error) is dict else error, value.get("message"), value.get("detail"))
    return next((text for text in candidates if isinstance(text, str) and text), None)


def stream_error(flow: Flow, data: bytes) -> GatewayError:
    """An error event before the commit point: the backend failed, in its own words where it has some.

    Some begin a stream before they have looked at the request: their 400 comes as `code` of the first event.
    """
    message = flow.request.operation.protocol.error_message(data)
    error = _error_of(data)
    code = error.get("code")
    if type(code) is int and code in _CLIENTS and message:
        return InvalidRequest(message, code="context_length_exceeded" if _OVERFLOW.search(message) else None)
    return UpstreamFailed(message or "The backend answered with something that is not an event stream.")


def _error_of(data: bytes) -> dict[str, Any]:
    """The object `error` of an event; an empty one where there is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    error = value.get("error") if type(value) is dict else None
    return error if type(error) is dict else {}


def ending_of(error: GatewayError) -> str:
    """The ledger's word for an admitted request that was answered with this error."""
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    if isinstance(error, UpstreamFailed | UpstreamBusy | InternalError):
        return "upstream_error"
    assert isinstance(error, Unavailable) or error.status < 500 or error.status == 501
    return "rejected"


def header(headers: Headers, name: bytes) -> bytes:
    """The first value of a header, or empty."""
    for key, value in headers:
        if key == name:
            return value
    return b""


def finishes(block: bytes) -> bool:
    """Does a block say that a choice (or the whole answer) is finished?"""
    return _FINISH.search(block) is not None


def is_json(data: bytes) -> bool:
    """Is this a whole JSON value?"""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _retry_after_s(headers: Headers) -> float | None:
    """What a backend says of when to come back: milliseconds, seconds or a date (RFC 9110 10.2.3)."""
    milliseconds = header(headers, b"retry-after-ms")
    text = (milliseconds or header(headers, b"retry-after")).decode("latin-1")
    try:
        seconds = float(text) / 1000 if milliseconds else float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds < math.inf else None
