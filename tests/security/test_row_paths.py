"""Authentication decided on a path put together again (Starlette's BadHost and those it reached): nothing but the matched route decides."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.security.inside import Inside

HOSTS = (
    "x/healthz?",
    "x/healthz#",
    "gateway/v1/models?",
    "x\\healthz",
    "user:pw@gateway/healthz?",
    "[::1]/healthz?",
    "gateway:80/docs?",
    "",
    "a b",
    "healthz",
)
PROTECTED = ("GET /admin/users", "GET /admin/audit", "GET /v1/models", "POST /v1/chat/completions", "GET /auth/me")


async def raw(port: int, request: bytes) -> int:
    """The status of the answer; 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        head = await asyncio.wait_for(reader.readline(), 10)
        return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


def head(method: str, target: str, host: str) -> bytes:
    return f"{method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}".encode("latin-1")


@pytest.mark.parametrize("host", HOSTS)
async def test_no_host_opens_a_route(own: Inside, host: str) -> None:
    for name in PROTECTED:
        method, path = name.split()
        assert await raw(own.port, head(method, path, host)) in (400, 401), name


@pytest.mark.parametrize(
    "target",
    [
        "/healthz/../admin/users",
        "/healthz/%2e%2e/admin/users",
        "//admin/users",
        "/./admin/users",
        "/admin/users/",
        "/admin%2fusers",
        "/ADMIN/users",
        "/docs/..;/admin/users",
        "/admin/users;/healthz",
        "/admin/users?x=/healthz",
        "/admin/users%00/healthz",
        "\\admin\\users",
        "http://gateway/admin/users",
        "http://x/healthz?/admin/users",
        "/healthz?/../admin/users",
        "/v1/models/../../healthz",
        "*",
    ],
)
async def test_no_way_to_write_a_path_opens_a_route(own: Inside, target: str) -> None:
    """Either nothing is there, or a credential is asked for, or what is answered is the public page itself."""
    status = await raw(own.port, head("GET", target, "gateway"))
    public = target.startswith(("/healthz?", "http://x/healthz?"))
    assert status in ((200, 400) if public else (0, 400, 401, 404, 405)), status


_ODD = st.text(st.sampled_from("/\\.%?#;:@ *ax%2f%2e\t\x7f\xe9&=+~"), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefix=_ODD, suffix=_ODD, host=_ODD, path=st.sampled_from(["/admin/users", "/admin/keys", "/v1/models", "/auth/me"]))
async def test_no_path_and_host_whatever_they_are_reach_a_protected_route(
    own: Inside, prefix: str, suffix: str, host: str, path: str
) -> None:
    target = (prefix + path + suffix).replace(" ", "").replace("\t", "") or "/"
    status = await raw(own.port, head("GET", target, host.replace("\t", "")))
    public = target.startswith(("/?", "/#"))  # the front page, with something behind it
    assert status in (0, 400, 401, 404, 405, 431) or (public and status == 200), (target, host, status)
