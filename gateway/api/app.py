"""The control plane, put together."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.routing import BaseRoute

from gateway.api import (
    audit,
    backends,
    contents,
    docs,
    jwks,
    keys,
    login,
    metrics,
    models,
    oidc,
    operations,
    own_keys,
    password_links,
    prices,
    relayed,
    revisions,
    secrets,
    teams,
    usage,
    usage_requests,
    users,
)
from gateway.api.context import address_of
from gateway.api.cors import Cors
from gateway.api.envelope import Envelope
from gateway.api.faults import add_error_handlers
from gateway.api.guard import Guard, GuardedRoute, check_guarded
from gateway.api.openapi import Api
from gateway.api.policies import RELAY_PATHS
from gateway.limits.edge import AddressLimits
from gateway.runtime import Control


def create_api(control: Control, stateless: Sequence[BaseRoute] = ()) -> FastAPI:
    """The ASGI application for everything that the relay does not take. Raises `RouteWithoutPolicy`: a fault of the program.

    `stateless`: `stateless_routes()` of before. A process that makes many applications need not read all signatures for each.
    """
    app = _empty(control.version)
    app.state.control = control
    app.state.guard = Guard(control.relay.authenticator, control.trusted_proxies, control.uses)
    add_error_handlers(app)
    limits = AddressLimits(address_of)
    login.add_routes(app, limits)
    password_links.add_routes(app, limits)
    oidc.add_routes(app, limits)
    app.router.routes.extend(stateless or stateless_routes())
    check_guarded(app.routes)
    app.add_middleware(Cors, origins=control.cors_origins, extra_paths=RELAY_PATHS)
    app.add_middleware(Envelope, ids=control.relay.ids, trusted_proxies=control.trusted_proxies)  # added last: outermost
    return app


def stateless_routes() -> Sequence[BaseRoute]:
    """All that keep nothing of their own: what they work with is the application's."""
    app = _empty("")
    for part in (
        relayed,
        models,
        usage,
        usage_requests,
        metrics,
        jwks,
        users,
        teams,
        keys,
        own_keys,
        revisions,
        backends,
        prices,
        secrets,
        audit,
        contents,
        operations,
        docs,
    ):
        part.add_routes(app)
    return tuple(app.router.routes)


def _empty(version: str) -> FastAPI:
    app = Api(
        version=version,
        docs_url=None,  # ours are guarded routes like all others
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        strict_content_type=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.router.route_class = GuardedRoute
    return app
