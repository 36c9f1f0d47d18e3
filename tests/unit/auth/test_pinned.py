"""httpx goes to addresses that were judged, under the name that was asked for."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from auth.outbound import UNANSWERED, AddressForbidden, Pinned, failure
from tests.name_server import Names
from tests.upstream import Seen, Upstream, Wire
from tests.wire.authority import Authority


def client(verify: ssl.SSLContext | bool = False, **options: Any) -> httpx.AsyncClient:
    inner = httpx.AsyncHTTPTransport(verify=verify, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
    return httpx.AsyncClient(transport=Pinned(inner, **options), trust_env=False, timeout=5)


def run(main: Coroutine[Any, Any, None], known: dict[str, list[list[str]]]) -> Names:
    loop = Names(known)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main)
    return loop


async def alive(wire: Wire, seen: Seen) -> None:
    await wire.answer({"ok": True})


@pytest.mark.parametrize("addresses", [["169.254.169.254"], ["::ffff:169.254.169.254", "0.0.0.0"], ["fe80::1"]])
def test_forbidden_addresses_are_not_connected_to(addresses: list[str]) -> None:
    async def main() -> None:
        async with client() as http:
            with pytest.raises(AddressForbidden):
                await http.get("http://bad.example:9/")

    assert not run(main(), {"bad.example": [addresses]}).tried


def test_unless_they_are_allowed() -> None:
    async def main() -> None:
        async with client(allow_link_local=True) as http:
            with pytest.raises(httpx.ConnectError) as caught:
                await http.get("http://bad.example:9/")
            assert not isinstance(caught.value, AddressForbidden)

    assert run(main(), {"bad.example": [["169.254.169.254"]]}).tried == ["169.254.169.254"]


def test_looked_up_once_and_the_next_address_where_one_does_not_answer() -> None:
    async def main() -> None:
        async with Upstream(alive) as up, client() as http:
            assert (await http.get(f"http://good.example:{up.port}/x?y=1")).json() == {"ok": True}
            assert up.seen[0].path == "/x?y=1"
            assert up.seen[0].headers["host"] == f"good.example:{up.port}"
            with pytest.raises(AddressForbidden):  # what the name means now
                await http.get(f"http://good.example:{up.port}/")

    found = run(main(), {"good.example": [["169.254.1.1", "192.0.2.1", "127.0.0.1"], ["169.254.169.254"]]})
    assert found.asked == ["good.example"] * 2
    assert found.tried == ["192.0.2.1", "127.0.0.1"]


def test_certificates_are_those_of_the_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    served = authority.server_context("one", "one.example")

    async def main() -> None:
        async with Upstream(alive, tls=served) as up, client(authority.client_context()) as http:
            assert (await http.get(f"https://one.example:{up.port}/")).status_code == 200
            for _ in range(2):  # also where a connection to the same address has just been made for the right name
                with pytest.raises(httpx.ConnectError, match=r"(?i)certificate|hostname"):
                    await http.get(f"https://two.example:{up.port}/")
            assert [seen.headers["host"] for seen in up.seen] == [f"one.example:{up.port}"]

    run(main(), {"one.example": [["127.0.0.1"]], "two.example": [["127.0.0.1"]]})


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_literal_addresses(host: str) -> None:
    """By the resolver of the system."""

    async def main() -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = await asyncio.start_server(_ok, "::1" if ":" in host else "127.0.0.1", 0, family=family)
        async with server, client() as http:
            assert (await http.get(f"http://{host}:{server.sockets[0].getsockname()[1]}/")).text == "ok"

    asyncio.run(main())


def test_a_name_that_is_none() -> None:
    async def main() -> None:
        async with client() as http:
            for host in ("unknown.example", "a" * 64 + ".example"):
                with pytest.raises(httpx.ConnectError):
                    await http.get(f"http://{host}/")

    run(main(), {})


async def _ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (TimeoutError(), "timeout"),
        (httpx.ReadTimeout("http://secret.example"), "timeout"),
        (httpx.ConnectTimeout(""), "timeout"),
        (AddressForbidden(""), "forbidden"),
        (httpx.ConnectError("secret.example"), "unreachable"),
        (httpx.ReadError(""), "failed"),
        (httpx.InvalidURL(""), "failed"),
        (ssl.SSLError(), "failed"),
        (UnicodeError(), "failed"),
    ],
)
def test_a_failure_is_one_word(error: Exception, word: str) -> None:
    assert isinstance(error, UNANSWERED)
    assert failure(error) == word
