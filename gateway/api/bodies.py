"""A request's body: whole, bounded, and JSON that every part behind can carry; text where the route says that it takes text.

Bodies are JSON (or text) here whatever their content type says: `curl -d` sends a form's. Nothing is lost by it, since a browser's form
cannot send the credential, and the two endpoints that take a cookie look at where the request comes from.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request
from starlette.types import Message

from gateway.errors import BodyTooLarge, InvalidRequest

MAX_BYTES = 4_000_000  # a revision document of some ten thousand models
MAX_PUBLIC_BYTES = 65_536  # what somebody unknown may make us read


async def whole(request: Request, *, public: bool, text: bool = False) -> Request:
    """The same request with its body read and checked: UTF-8 if it is to be `text`, else JSON. Raises `BodyTooLarge`, `InvalidRequest`."""
    for value in (*request.query_params.values(), *request.path_params.values()):
        _no_nul(value)
    if request.method in ("GET", "HEAD"):
        return request
    body = await _read(request, MAX_PUBLIC_BYTES if public else MAX_BYTES)
    (_check_text if text else _check)(body)
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    kind = b"text/plain; charset=utf-8" if text else b"application/json"
    scope = {**request.scope, "headers": [*headers, (b"content-type", kind)]}
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await request.receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, replay)


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than the limit of {max_bytes} bytes.")


def _check(body: bytes) -> None:
    if not body:
        return
    try:
        value = orjson.loads(body)  # stricter than what follows: no NaN, no lone surrogates, no endless nesting
    except orjson.JSONDecodeError:
        raise InvalidRequest("The request body is not valid JSON.") from None
    if b"\\u0000" in body:
        _no_nul(value)


def _check_text(body: bytes) -> None:
    try:
        _no_nul(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidRequest("The request body is not UTF-8 text.") from None


def _no_nul(value: Any) -> None:
    """No text here may hold NUL: PostgreSQL cannot store it."""
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidRequest("A text of this request holds a NUL character.")
    elif isinstance(value, dict):
        for key, item in value.items():
            _no_nul(key)
            _no_nul(item)
    elif isinstance(value, list):
        for item in value:
            _no_nul(item)
