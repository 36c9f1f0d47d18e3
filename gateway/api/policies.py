"""Who may use which route: one table. A route that is not in it cannot be registered.

`public`              anyone
`login`               a login token (an API key is refused: it is not a person)
`scope("x")`          any credential that carries the scope x
`manage`              the scope admin, or a login token (never a key) of a manager: who then sees and touches only their own team
`loopback or metrics` a peer on this machine that no proxy stands in front of, whatever it sends; else the scope metrics

The relay routes are enforced by the relay itself, on the same credentials; they stand here because they are part of the same surface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.relay.operations import ROUTES


@dataclass(frozen=True, slots=True)
class Policy:
    """`scope` is required if not empty. `login`: of a person. `loopback`: waived for local peers. `manager`: waived for managers."""

    name: str
    scope: str = ""
    login: bool = False
    loopback: bool = False
    manager: bool = False

    @property
    def public(self) -> bool:
        return not self.scope and not self.login


class RouteWithoutPolicy(Exception):
    """A route was registered that the table does not name: a fault of the program, found when it starts."""


PUBLIC = Policy("public")
LOGIN = Policy("login", login=True)
INFERENCE = Policy("scope:inference", scope="inference")
USAGE = Policy("scope:usage", scope="usage")
ADMIN = Policy("scope:admin", scope="admin")
CONTENT = Policy("scope:content", scope="content")  # no login carries it
MANAGE = Policy("manage", scope="admin", manager=True)
LOOPBACK_OR_METRICS = Policy("loopback or metrics", scope="metrics", loopback=True)

RELAY_PATHS = tuple(path.decode() for path in ROUTES)

# "METHOD path template" -> policy
POLICIES: Mapping[str, Policy] = {
    "GET /": PUBLIC,
    "HEAD /": PUBLIC,
    "GET /health": PUBLIC,
    "HEAD /health": PUBLIC,
    "GET /healthz": PUBLIC,
    "HEAD /healthz": PUBLIC,
    "GET /readyz": PUBLIC,
    "HEAD /readyz": PUBLIC,
    "GET /docs": PUBLIC,
    "GET /docs/{version}/{name}": PUBLIC,
    "GET /openapi.json": PUBLIC,
    "GET /metrics": LOOPBACK_OR_METRICS,
    **{f"POST {path}": INFERENCE for path in RELAY_PATHS},
    "GET /v1/models": INFERENCE,
    "GET /v1/models/{model_id:path}": INFERENCE,
    "GET /v1/usage": USAGE,
    "GET /v1/usage/requests": USAGE,
    "GET /v1/usage/requests/{request_id}": USAGE,
    "GET /.well-known/jwks.json": PUBLIC,
    "POST /auth/login": PUBLIC,
    "POST /auth/refresh": PUBLIC,
    "POST /auth/logout": PUBLIC,
    "GET /auth/oidc": PUBLIC,
    "GET /auth/oidc/login": PUBLIC,
    "GET /auth/oidc/callback": PUBLIC,
    "POST /auth/oidc/approve": PUBLIC,
    "POST /auth/oidc/token": PUBLIC,
    "GET /auth/me": LOGIN,
    "POST /auth/password": LOGIN,
    "GET /auth/password/reset": PUBLIC,
    "POST /auth/password/reset": PUBLIC,  # the link's token is the credential
    "GET /admin/users": MANAGE,
    "POST /admin/users": MANAGE,
    "GET /admin/users/{user_id}": MANAGE,
    "PATCH /admin/users/{user_id}": MANAGE,
    "POST /admin/users/{user_id}/password-link": MANAGE,
    "POST /admin/users/{user_id}/password": ADMIN,
    "POST /admin/users/{user_id}/budget/reset": ADMIN,
    "POST /admin/service-accounts": MANAGE,
    "GET /admin/teams": MANAGE,
    "POST /admin/teams": ADMIN,
    "GET /admin/teams/{team_id}": MANAGE,
    "PATCH /admin/teams/{team_id}": ADMIN,
    "DELETE /admin/teams/{team_id}": ADMIN,
    "POST /admin/teams/{team_id}/budget/reset": ADMIN,
    "GET /auth/keys": LOGIN,
    "POST /auth/keys/{key_id}/revoke": LOGIN,
    "POST /auth/keys/{key_id}/rotate": LOGIN,
    "GET /admin/keys": MANAGE,
    "POST /admin/keys": MANAGE,
    "POST /admin/keys/import": ADMIN,
    "GET /admin/keys/{key_id}": MANAGE,
    "PATCH /admin/keys/{key_id}": MANAGE,
    "POST /admin/keys/{key_id}/revoke": MANAGE,
    "POST /admin/keys/{key_id}/rotate": MANAGE,
    "POST /admin/keys/{key_id}/budget/reset": ADMIN,
    "GET /admin/revisions": ADMIN,
    "POST /admin/revisions": ADMIN,
    "POST /admin/revisions/check": ADMIN,
    "POST /admin/revisions/rollback": ADMIN,
    "GET /admin/revisions/live": ADMIN,
    "GET /admin/revisions/{revision_id:int}": ADMIN,
    "GET /admin/backends": ADMIN,
    "GET /admin/prices": ADMIN,
    "POST /admin/prices/import": ADMIN,
    "GET /admin/usage": MANAGE,
    "GET /admin/usage/requests": MANAGE,
    "GET /admin/usage/requests/{request_id}": MANAGE,
    "GET /admin/metrics/names": ADMIN,
    "GET /admin/metrics/series": ADMIN,
    "GET /admin/secrets": ADMIN,
    "PUT /admin/secrets/{name:path}": ADMIN,
    "DELETE /admin/secrets/{name:path}": ADMIN,
    "GET /admin/audit": ADMIN,
    "GET /admin/audit/export": ADMIN,
    "GET /admin/contents": CONTENT,
    "DELETE /admin/contents": ADMIN,
    "GET /admin/contents/{request_id}": CONTENT,
}


def policy_of(method: str, path: str) -> Policy:
    """Raises `RouteWithoutPolicy`."""
    try:
        return POLICIES[f"{method} {path}"]
    except KeyError:
        raise RouteWithoutPolicy(f"{method} {path} has no policy in gateway.api.policies") from None
