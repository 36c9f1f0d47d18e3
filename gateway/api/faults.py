"""Errors as answers, in the shape of the path: `/auth` and `/admin` speak {"detail": ...}, everything else OpenAI's four keys.

A client with a wrong base URL then still sees its SDK's error, with a sentence in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from auth.errors import HasherBusy, LoginDelayed, LoginFailed, PasswordUnsuitable, SigningAway
from gateway.errors import GatewayError, InvalidRequest, MethodNotAllowed, NotFound, RateLimited, Unauthenticated, Unavailable
from gateway.routing.faults import DocumentInvalid, Fault
from gateway.store.errors import StoreUnavailable

_NOWHERE = "There is nothing at this path. OpenAI clients use the base URL that ends in /v1; all routes are listed at /docs."


def speaks_detail(path: str) -> bool:
    """Which shape do errors have here? Only that: nothing else is decided by the path."""
    return path.startswith(("/auth/", "/admin/")) or path in ("/auth", "/admin")


def answer(scope: Scope, error: GatewayError, detail: Any = None, headers: dict[str, str] | None = None) -> Response:
    """`detail` takes the place of the message where {"detail": ...} is spoken."""
    scope["state"].setdefault("refusal", getattr(error, "reason", error.code))
    headers = dict(headers or {})
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(0, math.ceil(error.retry_after_s)))
    if error.retry is not None:
        headers["x-should-retry"] = "true" if error.retry else "false"
    body = {"detail": detail or error.message} if speaks_detail(scope["path"]) else error.body()
    return JSONResponse(body, error.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Everything that endpoints may raise; what is not named here is a bug, and answered by the envelope."""
    app.add_exception_handler(GatewayError, _on_gateway_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(LoginFailed, _on_login_failed)
    app.add_exception_handler(LoginDelayed, _on_delayed)
    app.add_exception_handler(HasherBusy, _on_busy)
    app.add_exception_handler(PasswordUnsuitable, _on_unsuitable)
    app.add_exception_handler(SigningAway, _on_signing_away)


async def _on_gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    if isinstance(error, DocumentInvalid):
        return answer(request.scope, error, [{"path": _place(fault), "message": fault.message} for fault in error.faults])
    if isinstance(error, StoreUnavailable):
        error.retry_after_s = error.retry_after_s or 1
    return answer(request.scope, error)


def _place(fault: Fault) -> str:
    """Of a table: the line, and the column if it is one."""
    if fault.line is None:
        return fault.place
    return f"line {fault.line}: {fault.place}" if fault.path else f"line {fault.line}"


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, no such method, a body that it could not read."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        methods = ", ".join(sorted(_methods_here(request)))
        return answer(request.scope, MethodNotAllowed(f"{request.method} is not possible here; use {methods}."), headers={"allow": methods})
    if error.status_code == 404:
        return answer(request.scope, NotFound(_NOWHERE))
    return answer(request.scope, InvalidRequest(str(error.detail)))


def _methods_here(request: Request) -> set[str]:
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= route.methods
    return found


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = list(_faults(error))
    message = "; ".join(f"{fault['path']}: {fault['message']}" if fault["path"] else fault["message"] for fault in faults)
    return answer(request.scope, InvalidRequest(message, param=faults[0]["path"] or None), faults)


def _faults(error: RequestValidationError) -> Iterator[dict[str, str]]:
    """`path` in the body, or the parameter's name. What was sent is not repeated: it may be a password."""
    for entry in error.errors():
        path = ".".join(str(step) for step in entry["loc"][1:])
        if not path and entry["type"] == "missing":
            yield {"path": "", "message": "A JSON body is required."}
            continue
        message = str(entry["msg"]).removeprefix("Value error, ")
        yield {"path": path, "message": message}


async def _on_login_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoginFailed)
    request.scope["state"]["refusal"] = error.reason
    return answer(request.scope, Unauthenticated("The e-mail address or the password is wrong."))


async def _on_delayed(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoginDelayed)
    request.scope["state"]["refusal"] = error.reason
    return answer(request.scope, RateLimited("Too many wrong passwords; try again a little later.", retry_after_s=error.retry_after_s))


async def _on_busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, HasherBusy)
    request.scope["state"]["refusal"] = error.reason
    return answer(request.scope, RateLimited("Too many passwords are being checked; try again shortly.", retry_after_s=error.retry_after_s))


async def _on_signing_away(request: Request, error: Exception) -> Response:
    assert isinstance(error, SigningAway)
    request.scope["state"]["refusal"] = error.reason
    message = "Nobody can log in at the moment: the key that signs login tokens cannot be opened. API keys go on working."
    return answer(request.scope, Unavailable(message, code="signing_unavailable", retry_after_s=30))


async def _on_unsuitable(request: Request, error: Exception) -> Response:
    assert isinstance(error, PasswordUnsuitable)
    return answer(request.scope, InvalidRequest(error.message, param="password"))
