"""Who may what: every route has a policy, and one resolver enforces it for every way to send a credential."""

from __future__ import annotations

import re

import httpx
import pytest
from starlette.routing import Mount, Route

from auth.principal import Role
from gateway.api.guard import GuardedRoute, check_guarded
from gateway.api.policies import POLICIES, RELAY_PATHS, RouteWithoutPolicy
from tests.unit.gateway.api.conftest import NEAR, Plane

HEADERS = {"authorization": "Bearer {}", "x-api-key": "{}", "api-key": "{}"}
KEYS = {"key:inference", "key:usage", "key:metrics", "key:admin", "key:content"}
LOGINS = {"admin", "manager", "member", "viewer"}
# What a route asks for -> the callers that have it: a key with this one scope, a login of this role, or "nobody".
ALLOWED = {
    "public": {"nobody"} | KEYS | LOGINS,
    "login": LOGINS,
    "scope:inference": {"key:inference", "admin", "manager", "member"},
    "scope:usage": {"key:usage"} | LOGINS,
    "scope:admin": {"key:admin", "admin"},
    "scope:content": {"key:content"},
    "manage": {"key:admin", "admin", "manager"},
    "loopback or metrics": {"key:metrics", "admin"},
}


def credential_of(plane: Plane, caller: str) -> str | None:
    if caller == "nobody":
        return None
    return plane.keys[caller.removeprefix("key:")] if caller in KEYS else plane.token(Role(caller))


def concrete(path: str) -> str:
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda match: "1" if match[1] == "revision_id" else "none-such", path)


async def ask(client: httpx.AsyncClient, route: str) -> int:
    method, path = route.split(" ", 1)
    # An unknown member: refused by every endpoint with a body, so nothing is changed on the way.
    body = {"no such field": 1} if method in ("POST", "PATCH", "PUT") else None
    return (await client.request(method, concrete(path), json=body)).status_code


@pytest.mark.parametrize("caller", sorted(ALLOWED["public"]))
async def test_every_route_for_every_caller(plane: Plane, caller: str) -> None:
    credential = credential_of(plane, caller)
    for name, form in HEADERS.items():
        headers = {name: form.format(credential)} if credential else {}
        async with plane.client() as client:
            client.headers.update(headers)
            for route, policy in POLICIES.items():
                status = await ask(client, route)
                if caller in ALLOWED[policy.name]:
                    refused_here = route == "POST /auth/refresh"  # without a refresh token it is a 401 of its own
                    assert status not in (401, 403) or refused_here, (route, name, status)
                else:
                    assert status == (401 if caller == "nobody" else 403), (route, name, status)


def test_every_route_is_guarded_and_every_policy_is_of_a_route(plane: Plane) -> None:
    assert all(isinstance(route, GuardedRoute) for route in plane.app.routes)
    served = {f"{method} {route.path}" for route in plane.app.routes if isinstance(route, GuardedRoute) for method in route.methods or ()}
    assert served == set(POLICIES)
    assert {f"POST {path}" for path in RELAY_PATHS} <= served


def test_a_route_without_policy_cannot_be_registered(plane: Plane) -> None:
    async def endpoint() -> None: ...

    with pytest.raises(RouteWithoutPolicy, match="POST /admin/forgotten"):
        plane.app.add_api_route("/admin/forgotten", endpoint, methods=["POST"])
    for unguarded in (Route("/plain", endpoint), Mount("/mounted", plane.app)):
        with pytest.raises(RouteWithoutPolicy):
            check_guarded([unguarded])


async def test_two_different_credentials_are_refused(plane: Plane) -> None:
    async with plane.client(plane.keys["admin"]) as client:
        assert (await client.get("/admin/users", headers={"x-api-key": plane.keys["inference"]})).status_code == 401
        assert (await client.get("/admin/users", headers={"x-api-key": plane.keys["admin"]})).status_code == 200


@pytest.mark.parametrize("host", ["gateway/v1/models?", "x/healthz?", "gateway@evil", "", "a b"])
async def test_the_host_header_decides_nothing(plane: Plane, host: str) -> None:
    async with plane.client() as client:
        assert (await client.get("/admin/users", headers={"host": host})).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/admin/users/",
        "//admin/users",
        "/./admin/users",
        "/healthz/../admin/users",
        "/admin%2Fusers/",
        "/ADMIN/users",
        "/docs/../admin/users",
    ],
)
async def test_paths_written_oddly_reach_nothing(plane: Plane, path: str) -> None:
    async with plane.client() as client:
        response = await client.send(httpx.Request("GET", httpx.URL("http://gateway").copy_with(raw_path=path.encode())))
        assert response.status_code in (401, 404)


async def test_the_credential_is_judged_before_the_body(anyone: httpx.AsyncClient) -> None:
    assert (await anyone.post("/admin/keys", content=b"{not json")).status_code == 401
    assert (await anyone.post("/admin/keys", content=b"x" * 5_000_000)).status_code == 401


async def test_a_revoked_key_and_a_disabled_owner_are_refused(plane: Plane, admin: httpx.AsyncClient) -> None:
    key = await plane.key("short-lived", plane.people[Role.MEMBER])
    async with plane.client(key) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await admin.patch(f"/admin/users/{plane.people[Role.MEMBER].id}", json={"disabled": True})).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401
        assert (await admin.patch(f"/admin/users/{plane.people[Role.MEMBER].id}", json={"disabled": False})).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        assert (await admin.post(f"/admin/keys/{key.split('-')[2]}/revoke")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


class TestMetrics:
    @pytest.mark.parametrize("peer", [NEAR, ("127.3.4.5", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)])
    async def test_a_local_peer_needs_nothing_whatever_it_sends(self, plane: Plane, peer: tuple[str, int]) -> None:
        async with plane.client(peer=peer) as client:
            response = await client.get("/metrics")
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert "gateway_build_info" in response.text
            for headers in ({"authorization": "Bearer wrong"}, {"authorization": f"Bearer {plane.keys['inference']}"}):
                assert (await client.get("/metrics", headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "header", ["x-forwarded-for", "X-Forwarded-Proto", "forwarded", "x-real-ip", "via", "cf-connecting-ip", "true-client-ip"]
    )
    async def test_a_proxy_in_front_is_no_local_peer(self, plane: Plane, header: str) -> None:
        async with plane.client(peer=NEAR) as client:
            assert (await client.get("/metrics", headers={header: "127.0.0.1"})).status_code == 401

    async def test_from_afar_the_scope_is_needed(self, plane: Plane) -> None:
        async with plane.client(plane.keys["metrics"]) as client:
            assert (await client.get("/metrics")).status_code == 200
        async with plane.client(peer=("10.127.0.1", 1)) as client:
            assert (await client.get("/metrics")).status_code == 401
