"""What every answer of the control plane has in common: a request id, careful headers, one log line, and no traceback.

Whether the client speaks https is decided here, once: it does where this connection does, or where a trusted proxy says so. Then browsers
are told to come back by https alone, and no cookie is set that plain http would carry.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from auth.address import Networks, client_is_secure
from gateway.api.faults import answer
from gateway.errors import InternalError

logger = structlog.get_logger(__name__)

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",  # of pages that embed; those that ask by CORS are not meant
    "cache-control": "no-store",
}
_PRIVATE = ("/auth/", "/admin/")  # whatever a route says, nobody keeps a copy
_HTTPS_ONLY = "max-age=31536000"
_PROBES = frozenset(("/healthz", "/readyz", "/health", "/metrics"))  # asked every few seconds: not worth a line each


class Envelope:
    """Pure ASGI, around everything. `ids` are those of the relay: one numbering for all requests of a process."""

    def __init__(self, app: ASGIApp, ids: Iterator[str], trusted_proxies: Networks) -> None:
        self._app = app
        self._ids = ids
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started, status = next(self._ids), time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = request_id
        secure = self._is_secure(scope)

        async def send_enveloped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith(_PRIVATE):
                    headers["cache-control"] = "no-store"
                if secure:
                    headers["strict-transport-security"] = _HTTPS_ONLY
                    _secure_cookies(message)
            await send(message)

        try:
            await self._app(scope, receive, send_enveloped)
        except ClientDisconnect:
            status = 499
        except Exception:
            logger.exception("control request failed", request_id=request_id, route=_route(scope))
            if status:
                raise  # half an answer is out: the server has to close the connection
            error = InternalError("The gateway failed on this request; its log says why, under the request id.")
            await answer(scope, error)(scope, receive, send_enveloped)
        finally:
            _log(scope, request_id, status, time.perf_counter() - started)

    def _is_secure(self, scope: Scope) -> bool:
        client = scope.get("client")
        return client_is_secure(scope["scheme"] == "https", client[0] if client else "", scope["headers"], self._trusted_proxies)


def _secure_cookies(message: Message) -> None:
    message["headers"] = [
        (name, value if name != b"set-cookie" or b"; secure" in value.lower() else value + b"; Secure")
        for name, value in message["headers"]
    ]


def _log(scope: Scope, request_id: str, status: int, duration_s: float) -> None:
    state, route = scope["state"], _route(scope)
    if route in _PROBES and status in (200, 503):  # not ready yet is no event
        return
    principal = state.get("principal")
    fields = {"refusal": state["refusal"]} if "refusal" in state else {}
    logger.info(
        "control request",
        request_id=request_id,
        method=scope["method"],
        route=route,
        status=status,
        duration_ms=round(duration_s * 1000, 1),
        user_id=principal.user_id if principal else None,
        key_id=principal.key_id if principal else None,
        **fields,
    )


def _route(scope: Scope) -> str:
    """The route's template, never the path itself: that may hold anything."""
    route = scope.get("route")
    return str(route.path) if route is not None else "none"
