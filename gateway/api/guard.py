"""The one resolver of route policies, and the route class that asks it before anything else of a request is read."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import Scope

from auth.address import Networks, client_address
from auth.credential import credential_of
from auth.errors import AuthError, StoreAway
from auth.ports import Authenticates
from auth.principal import Principal
from gateway.api.bodies import whole
from gateway.api.policies import Policy, RouteWithoutPolicy, policy_of
from gateway.api.reach import is_manager
from gateway.errors import Forbidden, Unauthenticated
from gateway.store.errors import StoreUnavailable
from gateway.store.key_uses import Uses

_REFUSED = "No valid credential was given. Send a key or a login token as 'Authorization: Bearer ...'."
# Whoever sends one of these is, or speaks for, a proxy: the peer's address then says nothing about the client's.
_FORWARDED = frozenset((b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip"))


class Guard:
    """Decides from what the client sent, never from a path put together again: the route that matched brings its policy."""

    def __init__(self, authenticator: Authenticates, trusted_proxies: Networks, uses: Uses) -> None:
        self._authenticator = authenticator
        self._trusted_proxies = trusted_proxies
        self._uses = uses

    def admit(self, policy: Policy, scope: Scope) -> Principal | None:
        """Who it is; None where nobody was asked. Raises `Unauthenticated`, `Forbidden`, `StoreUnavailable`."""
        if policy.public or (policy.loopback and is_local(scope)):
            return None
        now_s = time.time()
        try:
            principal = self._authenticator.authenticate(credential_of(scope["headers"]), now_s)
        except StoreAway as error:
            raise StoreUnavailable(error.reason, retry_after_s=error.retry_after_s) from None
        except AuthError as error:
            scope["state"]["refusal"] = error.reason  # for the log: the client gets one answer for all of them
            raise Unauthenticated(_REFUSED) from None
        scope["state"]["principal"] = principal
        if principal.networks is not None and not principal.may_come_from(self._address(scope)):
            raise Forbidden("This key may not be used from this address.")
        if policy.scope and policy.scope not in principal.scopes and not (policy.manager and is_manager(principal)):
            raise Forbidden(f"This credential does not have the scope '{policy.scope}'.")
        if policy.login and principal.key_id is not None:
            raise Forbidden("This needs a login, not an API key.")
        if principal.key_id is not None:
            self._uses.note(principal.key_id, now_s)
        return principal

    def _address(self, scope: Scope) -> str:
        client = scope.get("client")
        return client_address(client[0] if client else "", scope["headers"], self._trusted_proxies)


class GuardedRoute(APIRoute):
    """A route with a policy. Registering one that the table does not name fails."""

    policy: Policy
    takes_text: bool
    """Is the body text? What the route documents is what it takes."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        methods = options.get("methods") or {"GET"}
        policies = {policy_of(method, path) for method in methods}
        if len(policies) != 1:
            raise RouteWithoutPolicy(f"{path}: the methods of one route must share one policy")
        self.policy = policies.pop()
        documented = (options.get("openapi_extra") or {}).get("requestBody", {}).get("content", {})
        self.takes_text = any(kind.startswith("text/") for kind in documented)
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The credential is judged before the body is read, and the body before the endpoint is called."""
        handle, policy, takes_text = super().get_route_handler(), self.policy, self.takes_text

        async def guarded(request: Request) -> Response:
            guard: Guard = request.app.state.guard
            guard.admit(policy, request.scope)
            with_body = await whole(request, public=policy.public, text=takes_text)
            if with_body is not request:  # again: a body may take its time, and a credential may end meanwhile
                guard.admit(policy, request.scope)
            return await handle(with_body)

        return guarded


def check_guarded(routes: list[BaseRoute]) -> None:
    """Raises `RouteWithoutPolicy` for a route (or a mounted application) that no policy guards."""
    for route in routes:
        if not isinstance(route, GuardedRoute):
            raise RouteWithoutPolicy(f"{getattr(route, 'path', route)!r} is not a guarded route")


def is_local(scope: Scope) -> bool:
    """Does the request come from this machine, straight?"""
    client = scope.get("client")
    if not client or any(name in _FORWARDED or name.startswith((b"x-forwarded", b"x-original-forwarded")) for name, _ in scope["headers"]):
        return False
    try:
        address = ipaddress.ip_address(client[0].split("%", 1)[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
