"""What browsers are told, and what is believed of proxies: headers of every route's answers, https, cookies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from fastapi.routing import APIRoute

from auth.address import parse_networks
from auth.principal import Role
from gateway.api import create_api
from tests.unit.gateway.api.conftest import FAR, PASSWORD, Plane

PROXY = ("10.0.0.1", 50_000)
HTTPS = {"x-forwarded-for": "198.51.100.9", "x-forwarded-proto": "https"}
HTTP = {"x-forwarded-for": "198.51.100.9", "x-forwarded-proto": "http"}
LASTING = "max-age=31536000"


@pytest.fixture
def behind(plane: Plane) -> Plane:
    """The plane behind a trusted proxy, itself without TLS."""
    control = replace(plane.control, trusted_proxies=parse_networks(["10.0.0.0/8"]), cookie_secure=False)
    return replace(plane, control=control, app=create_api(control))


@pytest.fixture
async def proxied(behind: Plane) -> AsyncIterator[httpx.AsyncClient]:
    async with behind.client(peer=PROXY) as client:
        yield client


def routes(plane: Plane) -> list[tuple[str, str]]:
    """(method, a path that matches) of all routes."""
    found = []
    for route in plane.app.routes:
        assert isinstance(route, APIRoute)
        path = route.path
        for name, convertor in route.param_convertors.items():
            for spelling in (f"{{{name}}}", f"{{{name}:path}}", f"{{{name}:int}}"):
                path = path.replace(spelling, "1" if "int" in type(convertor).__name__.lower() else "x")
        found += [(method, path) for method in sorted(route.methods)]
    return found


async def test_every_route_answers_with_careful_headers_to_whoever_asks(plane: Plane) -> None:
    found = routes(plane)
    assert ("GET", "/admin/users") in found
    assert len(found) > 40
    credentials = (None, plane.token(Role.ADMIN), plane.keys["admin"], plane.keys["inference"])
    for credential in credentials:
        async with plane.client(credential) as client:
            for method, path in found:
                answer = await client.request(method, path, content=b"{", headers={"content-type": "application/json"})
                headers, place = answer.headers, f"{method} {path} {answer.status_code}"
                assert headers["x-content-type-options"] == "nosniff", place
                assert headers["x-frame-options"] == "DENY", place
                assert headers["referrer-policy"] == "no-referrer", place
                assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin", place
                assert "frame-ancestors 'none'" in headers["content-security-policy"], place
                assert "default-src 'none'" in headers["content-security-policy"], place
                assert "unsafe-eval" not in headers["content-security-policy"], place
                assert "script-src 'unsafe" not in headers["content-security-policy"], place
                assert "strict-transport-security" not in headers, place
                assert "server" not in headers, place
                if path.startswith(("/auth/", "/admin/")):
                    assert headers["cache-control"] == "no-store", place


@pytest.mark.parametrize("path", ["/admin/none", "/auth/none", "/none", "/admin/users/../users", "/auth/login"])
async def test_refusals_too(anyone: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "PUT", "OPTIONS"):
        headers = (await anyone.request(method, path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


class TestHttps:
    async def test_over_tls_browsers_are_told_to_stay(self, plane: Plane) -> None:
        transport = httpx.ASGITransport(plane.app, client=FAR)
        async with httpx.AsyncClient(transport=transport, base_url="https://gateway") as client:
            for path in ("/", "/docs", "/admin/users", "/v1/models", "/none"):
                assert (await client.get(path)).headers["strict-transport-security"] == LASTING

    @pytest.mark.parametrize(
        ("headers", "secure"),
        [
            (HTTPS, True),
            (HTTP, False),
            ({}, False),
            ({"forwarded": "for=198.51.100.9;proto=https"}, True),
            ({"x-forwarded-proto": "https, http"}, False),
        ],
    )
    async def test_a_trusted_proxy_is_believed(self, proxied: httpx.AsyncClient, headers: dict[str, str], secure: bool) -> None:
        answer = await proxied.get("/", headers=headers)
        assert answer.headers.get("strict-transport-security") == (LASTING if secure else None)

    async def test_nobody_else_is(self, behind: Plane, plane: Plane) -> None:
        async with behind.client(peer=FAR) as stranger, plane.client(peer=PROXY) as unconfigured:
            for client in (stranger, unconfigured):
                assert "strict-transport-security" not in (await client.get("/", headers=HTTPS)).headers

    @pytest.mark.parametrize(("headers", "secure"), [(HTTPS, True), (HTTP, False), ({}, False)])
    async def test_cookies_are_for_https_alone_where_it_is_spoken(
        self, proxied: httpx.AsyncClient, headers: dict[str, str], secure: bool
    ) -> None:
        login = {"email": f"{Role.ADMIN}@example.com", "password": PASSWORD, "cookie": True}
        answer = await proxied.post("/auth/login", json=login, headers=headers)
        assert answer.status_code == 200
        (cookie,) = answer.headers.get_list("set-cookie")
        assert cookie.lower().count("; secure") == int(secure)
        for word in ("httponly", "samesite=strict", "path=/auth"):
            assert word in cookie.lower()
        gone = await proxied.post("/auth/logout", headers=headers)
        assert gone.headers["set-cookie"].lower().count("; secure") == int(secure)


class TestAnAddressThatCannotBeKnown:
    """A trusted proxy passes on a header that it does not write: where it disagrees with its own, either may be the client's word."""

    @staticmethod
    def said(n: int) -> dict[str, str]:
        return {"x-forwarded-for": f"198.51.100.{n}", "forwarded": f"for=203.0.113.{n}"}

    async def test_no_network_holds_it(self, behind: Plane) -> None:
        """Neither all there are, nor that of the proxy: it stands inside the very network that such a key is often bound to."""
        for n, networks in enumerate((["0.0.0.0/0", "::/0"], ["10.0.0.0/8"], ["198.51.100.0/24", "203.0.113.0/24"])):
            key = await behind.key(f"bound-{n}", behind.people[Role.ADMIN], networks=networks)
            async with behind.client(key, peer=PROXY) as client:
                for headers in (self.said(1), {"x-forwarded-for": "junk"}, {"forwarded": "for=_hidden"}, {"forwarded": "for=10.0.0.9, x"}):
                    answer = await client.get("/v1/models", headers=headers)
                    assert answer.status_code == 403, (networks, headers)

    async def test_all_of_them_wait_as_one(self, proxied: httpx.AsyncClient) -> None:
        login = {"email": "nobody@example.com", "password": "a wrong one"}
        told = [(await proxied.post("/auth/login", json=login, headers=self.said(n))).status_code for n in range(40)]
        assert told.count(401) <= 30
        assert told[-1] == 429
        others = {"email": f"{Role.ADMIN}@example.com", "password": PASSWORD}
        assert (await proxied.post("/auth/login", json=others, headers=HTTPS)).status_code == 200  # whose address is known does not

    async def test_it_is_written_down_as_unknown(self, behind: Plane) -> None:
        async with behind.client(behind.token(Role.ADMIN), peer=PROXY) as client:
            assert (await client.post("/admin/keys", json={"name": "k"}, headers=self.said(7))).status_code == 201
            newest = (await client.get("/admin/audit")).json()["data"][0]
        assert (newest["action"], newest["address"]) == ("create", None)


async def test_the_change_log_names_the_client_behind_the_proxy(behind: Plane, plane: Plane) -> None:
    async with behind.client(plane.token(Role.ADMIN), peer=PROXY) as client:
        assert (await client.post("/admin/keys", json={"name": "k"}, headers=HTTPS)).status_code == 201
        found = (await client.get("/admin/audit")).text
    assert "198.51.100.9" in found
    assert PROXY[0] not in found
