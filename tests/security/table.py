"""Who may call what, and with which answer: every route of the gateway has a row here, and every row is asked by every caller.

A route without a row fails `test_routes.py`. To enter one: its policy, a request that the right caller gets `answer` for and that changes
nothing (mostly: an unknown id, or a body with an unknown member), and, where a caller who is let in gets another answer, that one in `but`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STRANGERS = frozenset(
    {
        "nobody",
        "unknown key",
        "nonsense",
        "forged token",
        "revoked key",
        "login of a disabled admin",
        "key of a disabled admin",
    }
)
LOGINS = frozenset({"login admin", "login manager", "login manager without a team", "login member", "login viewer"})
KEYS = frozenset(
    {
        "key inference",
        "key usage",
        "key metrics",
        "key admin",
        "key content",
        "key of the manager",
        "key of the member",
        "key of the viewer",
        "key of the service",
        "key elsewhere",
    }
)
CALLERS = STRANGERS | LOGINS | KEYS
_WORKERS = frozenset({"key of the manager", "key of the member", "key of the service"})
# Policy -> who is let in. Everybody else: a stranger 401, who is known 403. The key "elsewhere" has every scope, and comes from the wrong
# network.
LET_IN: Mapping[str, frozenset[str]] = {
    "public": CALLERS,
    "login": LOGINS,
    "scope:inference": (LOGINS - {"login viewer"}) | {"key inference"} | _WORKERS,
    "scope:usage": LOGINS | {"key usage", "key of the viewer"} | _WORKERS,
    "scope:admin": frozenset({"login admin", "key admin"}),
    "scope:content": frozenset({"key content"}),  # no login, whoever's
    "manage": frozenset({"login admin", "key admin", "login manager", "login manager without a team"}),
    "loopback or metrics": CALLERS,  # the tests stand on the gateway's machine; through a proxy: `test_metrics_through_a_proxy`
}
WRONG = {"no such member": 1}
_CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@dataclass(frozen=True, slots=True)
class Row:
    """`path`: with `{name}` for `Scene.ids`. `but`: caller -> status, for those let in who get another answer."""

    policy: str
    path: str
    answer: int = 200
    body: Any = None
    but: Mapping[str, int] = field(default_factory=dict)

    def expected(self, caller: str) -> int:
        if caller in LET_IN[self.policy]:
            return self.but.get(caller, self.answer)
        return 401 if caller in STRANGERS else 403


def _public(path: str, answer: int = 200, body: Any = None) -> Row:
    return Row("public", path, answer, body)


def _relayed(path: str, answer: int, body: Any) -> Row:
    return Row("scope:inference", path, answer, body)


def _admin(path: str, answer: int = 200, body: Any = None) -> Row:
    return Row("scope:admin", path, answer, body)


def _content(path: str, answer: int = 200) -> Row:
    return Row("scope:content", path, answer)


def _manage(path: str, answer: int = 200, body: Any = None, **but: int) -> Row:
    """`but`: manager, loner (the manager without a team)."""
    names = {"manager": "login manager", "loner": "login manager without a team"}
    return Row("manage", path, answer, body, {names[name]: status for name, status in but.items()})


TABLE: Mapping[str, Row] = {
    **{f"{method} {path}": _public(path) for path in ("/", "/health", "/healthz", "/readyz") for method in ("GET", "HEAD")},
    "GET /docs": _public("/docs"),
    "GET /docs/{version}/{name}": _public("/docs/0/none-such", 404),
    "GET /openapi.json": _public("/openapi.json"),
    "GET /metrics": Row("loopback or metrics", "/metrics"),
    # Relayed: the model "m" echoes, which serves chat, completions and embeddings alone and has no tokenizer.
    "POST /v1/chat/completions": _relayed("/v1/chat/completions", 200, _CHAT),
    "POST /v1/completions": _relayed("/v1/completions", 200, {"model": "m", "prompt": "hello"}),
    "POST /v1/embeddings": _relayed("/v1/embeddings", 200, {"model": "m", "input": "hello"}),
    "POST /v1/tokenize": _relayed("/v1/tokenize", 501, {"model": "m", "prompt": "hello"}),
    "POST /v1/detokenize": _relayed("/v1/detokenize", 501, {"model": "m", "tokens": [1]}),
    "POST /tokenize": _relayed("/tokenize", 501, {"model": "m", "prompt": "hello"}),
    "POST /detokenize": _relayed("/detokenize", 501, {"model": "m", "tokens": [1]}),
    "POST /v1/responses": _relayed("/v1/responses", 404, {"model": "m", "input": "hello"}),
    "POST /v1/messages": _relayed("/v1/messages", 404, {**_CHAT, "max_tokens": 5}),
    "POST /v1/rerank": _relayed("/v1/rerank", 404, {"model": "m", "query": "q", "documents": ["d"]}),
    "POST /v1/moderations": _relayed("/v1/moderations", 404, {"model": "m", "input": "hello"}),
    "POST /v1/images/generations": _relayed("/v1/images/generations", 404, {"model": "m", "prompt": "hello"}),
    "POST /v1/images/edits": _relayed("/v1/images/edits", 404, {"model": "m", "prompt": "hello", "images": [{"image_url": "data:,"}]}),
    "POST /v1/images/variations": _relayed("/v1/images/variations", 400, {"model": "m"}),  # a form is wanted
    "POST /v1/audio/speech": _relayed("/v1/audio/speech", 404, {"model": "m", "input": "hello"}),
    "POST /v1/audio/transcriptions": _relayed("/v1/audio/transcriptions", 400, {"model": "m"}),
    "POST /v1/audio/translations": _relayed("/v1/audio/translations", 400, {"model": "m"}),
    "GET /v1/models": Row("scope:inference", "/v1/models"),
    "GET /v1/models/{model_id:path}": Row("scope:inference", "/v1/models/m"),
    "GET /v1/usage": Row("scope:usage", "/v1/usage"),
    "GET /v1/usage/requests": Row("scope:usage", "/v1/usage/requests"),
    "GET /v1/usage/requests/{request_id}": Row("scope:usage", "/v1/usage/requests/none-such", 404),
    "GET /.well-known/jwks.json": _public("/.well-known/jwks.json"),
    "POST /auth/login": _public("/auth/login", 400, WRONG),
    "POST /auth/refresh": _public("/auth/refresh", 401, {"refresh_token": "none-such"}),
    "POST /auth/logout": _public("/auth/logout", 204, {"refresh_token": "none-such"}),
    # No provider is set up here.
    "GET /auth/oidc": _public("/auth/oidc"),
    "GET /auth/oidc/login": _public("/auth/oidc/login", 404),
    "GET /auth/oidc/callback": _public("/auth/oidc/callback", 404),
    "POST /auth/oidc/approve": _public("/auth/oidc/approve", 400, WRONG),
    "POST /auth/oidc/token": _public("/auth/oidc/token", 400, WRONG),
    "GET /auth/password/reset": _public("/auth/password/reset"),
    "POST /auth/password/reset": _public("/auth/password/reset", 400, WRONG),
    "GET /auth/me": Row("login", "/auth/me"),
    "POST /auth/password": Row("login", "/auth/password", 400, WRONG),
    "GET /auth/keys": Row("login", "/auth/keys"),
    "POST /auth/keys/{key_id}/revoke": Row("login", "/auth/keys/none-such/revoke", 404),
    "POST /auth/keys/{key_id}/rotate": Row("login", "/auth/keys/none-such/rotate", 404),
    "GET /admin/users": _manage("/admin/users"),
    "POST /admin/users": _manage("/admin/users", 400, WRONG),
    "GET /admin/users/{user_id}": _manage("/admin/users/{other_member}", manager=404, loner=404),
    "PATCH /admin/users/{user_id}": _manage("/admin/users/{other_member}", 400, WRONG),
    "POST /admin/users/{user_id}/password": _admin("/admin/users/none-such/password", 400, WRONG),
    "POST /admin/users/{user_id}/password-link": _manage("/admin/users/none-such/password-link", 404, loner=403),
    "POST /admin/users/{user_id}/budget/reset": _admin("/admin/users/none-such/budget/reset", 404),
    "POST /admin/service-accounts": _manage("/admin/service-accounts", 400, WRONG),
    "GET /admin/teams": _manage("/admin/teams"),
    "POST /admin/teams": _admin("/admin/teams", 400, WRONG),
    "GET /admin/teams/{team_id}": _manage("/admin/teams/{other_team}", manager=404, loner=404),
    "PATCH /admin/teams/{team_id}": _admin("/admin/teams/{other_team}", 400, WRONG),
    "DELETE /admin/teams/{team_id}": _admin("/admin/teams/none-such", 404),
    "POST /admin/teams/{team_id}/budget/reset": _admin("/admin/teams/none-such/budget/reset", 404),
    "GET /admin/keys": _manage("/admin/keys"),
    "POST /admin/keys": _manage("/admin/keys", 400, WRONG),
    "POST /admin/keys/import": _admin("/admin/keys/import", 400, WRONG),
    "GET /admin/keys/{key_id}": _manage("/admin/keys/{key_of_other}", manager=404, loner=404),
    "PATCH /admin/keys/{key_id}": _manage("/admin/keys/{key_of_other}", 400, WRONG),
    "POST /admin/keys/{key_id}/revoke": _manage("/admin/keys/none-such/revoke", 404),
    "POST /admin/keys/{key_id}/rotate": _manage("/admin/keys/none-such/rotate", 404),
    "POST /admin/keys/{key_id}/budget/reset": _admin("/admin/keys/none-such/budget/reset", 404),
    "GET /admin/revisions": _admin("/admin/revisions"),
    "POST /admin/revisions": _admin("/admin/revisions", 400, WRONG),
    "POST /admin/revisions/check": _admin("/admin/revisions/check", 400, WRONG),
    "POST /admin/revisions/rollback": _admin("/admin/revisions/rollback", 400, WRONG),
    "GET /admin/revisions/live": _admin("/admin/revisions/live"),
    "GET /admin/revisions/{revision_id:int}": _admin("/admin/revisions/1"),
    "GET /admin/backends": _admin("/admin/backends"),
    "GET /admin/prices": _admin("/admin/prices"),
    "POST /admin/prices/import": _admin("/admin/prices/import", 400, WRONG),  # no CSV
    "GET /admin/usage": _manage("/admin/usage"),
    "GET /admin/usage/requests": _manage("/admin/usage/requests?key=none-such"),
    "GET /admin/usage/requests/{request_id}": _manage("/admin/usage/requests/none-such", 404),
    "GET /admin/metrics/names": _admin("/admin/metrics/names"),
    "GET /admin/metrics/series": _admin("/admin/metrics/series?metric=gateway_requests_total"),
    "GET /admin/secrets": _admin("/admin/secrets"),
    "PUT /admin/secrets/{name:path}": _admin("/admin/secrets/none-such", 400, WRONG),
    "DELETE /admin/secrets/{name:path}": _admin("/admin/secrets/none-such", 404),
    "GET /admin/audit": _admin("/admin/audit"),
    "GET /admin/audit/export": _admin("/admin/audit/export"),
    "GET /admin/contents": _content("/admin/contents"),
    "GET /admin/contents/{request_id}": _content("/admin/contents/none-such?reason=looking+for+what+is+not+there", 404),
    "DELETE /admin/contents": _admin("/admin/contents?reason=nothing+to+erase", 400),
}
