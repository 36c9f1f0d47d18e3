"""Where a connection to a backend goes: judged when it is made, on the address that is then connected to, and never again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from auth.address import forbidden_address
from backends.base import Call
from backends.custom import CustomBackend
from backends.local import LocalState
from gateway.app import LiveBackends
from gateway.routing.table import BackendSpec
from tests.faults.test_fuzz import CALL, Told
from tests.name_server import Names
from tests.upstream import Seen, Upstream, Wire

pytestmark = pytest.mark.alone


def run(main: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop | None = None) -> None:
    with asyncio.Runner(loop_factory=(lambda: loop) if loop else uvloop.new_event_loop) as runner:
        runner.run(main)


async def ask(pool: CustomBackend, call: Call = CALL) -> Told:
    """One exchange to its end."""
    exchange, told = pool.open(), Told()
    exchange.start(call, told)
    async with asyncio.timeout(5):
        while told.ending is None:  # a sink has nobody to wake
            await asyncio.sleep(0.001)
    return told


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "0", "0.0.0.0", "[::]",
        "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[fe80::1]", "[fe80::1%25lo]", "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]",
        "100.100.100.200", "224.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_however_it_is_spelt_nothing_connects_to_it(host: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Through the resolver of the system, which takes all of these for addresses."""

    async def main() -> None:
        exchange, told = (pool := CustomBackend(f"http://{host}:9/v1", forbidden=forbidden_address)).open(), Told()
        exchange.start(CALL, told)
        async with asyncio.timeout(5):
            while told.ending is None:
                await asyncio.sleep(0.001)
        assert told.ending == "forbidden"
        assert not exchange.sent
        assert not pool.connections

    run(main(), loop())


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "localhost"])
def test_loopback_is_where_backends_are(host: str) -> None:
    async def main() -> None:
        async with Upstream() as up:
            told = await ask(CustomBackend(f"http://{host}:{up.port}/v1", forbidden=forbidden_address))
            assert (told.status, told.ending) == (200, "end False")

    run(main())


def test_a_name_with_a_bad_and_a_good_address_goes_to_the_good_one() -> None:
    async def main() -> None:
        async with Upstream() as up:
            told = await ask(CustomBackend(f"http://two.example:{up.port}/v1", forbidden=forbidden_address))
            assert told.status == 200
            assert up.seen[0].headers["host"] == f"two.example:{up.port}"

    run(main(), Names({"two.example": [["169.254.169.254", "fe80::1", "127.0.0.1"]]}))


@pytest.mark.parametrize("addresses", [["169.254.169.254"], ["::ffff:169.254.169.254", "fe80::1"], ["0.0.0.0"]])
def test_a_name_with_bad_addresses_alone_is_refused(addresses: list[str]) -> None:
    async def main() -> None:
        told = await ask(CustomBackend("http://bad.example:9/v1", forbidden=forbidden_address))
        assert told.ending == "forbidden"

    run(main(), Names({"bad.example": [addresses]}))


def test_the_address_that_was_judged_is_the_one_that_is_used() -> None:
    """A name server that answers differently the second time: no second time within one connection, and the next is judged anew."""

    async def main() -> None:
        async with Upstream(_closing) as up:
            pool = CustomBackend(f"http://rebound.example:{up.port}/v1", forbidden=forbidden_address)
            assert (await ask(pool)).status == 200
            assert loop.asked == ["rebound.example"]
            assert (await ask(pool)).ending == "forbidden"
            assert loop.asked == ["rebound.example"] * 2
            assert up.connections == 1

    loop = Names({"rebound.example": [["127.0.0.1"], ["169.254.169.254"]]})
    run(main(), loop)


def test_nothing_is_opened_towards_what_is_forbidden() -> None:
    async def main() -> None:
        async with Upstream() as up:
            assert (await ask(CustomBackend(up.url, forbidden=lambda _ip: "why not"))).ending == "forbidden"
            await asyncio.sleep(0.05)
            assert up.connections == 0

    run(main())


def test_a_standing_connection_is_not_judged_again() -> None:
    judged: list[str] = []

    def forbidden(ip: str) -> None:
        judged.append(ip)

    async def main() -> None:
        async with Upstream() as up:
            pool = CustomBackend(up.url, forbidden=forbidden)
            for _ in range(5):
                assert (await ask(pool)).status == 200
            assert up.connections == 1

    run(main())
    assert judged == ["127.0.0.1"]


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async def main() -> None:
        with socket.socket() as bound:  # bound, not listening: refused
            bound.bind(("127.0.0.2", 0))
            port = bound.getsockname()[1]

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"{}")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", port)
            pool = CustomBackend(f"http://two.example:{port}/v1", forbidden=forbidden_address)
            assert (await ask(pool)).body == b"ok"
            server.close()
            async with asyncio.timeout(5):
                while pool.connections:  # the server's closing has yet to arrive
                    await asyncio.sleep(0.001)
            assert (await ask(pool)).ending == "refused"
            assert (await ask(CustomBackend("http://unknown.example/v1", forbidden=forbidden_address))).ending == "unreachable"

    run(main(), Names({"two.example": [["127.0.0.2", "127.0.0.1"]]}))


@pytest.mark.parametrize(("allowed", "tried"), [(False, []), (True, ["169.254.169.254"])])
def test_it_is_allowed_where_somebody_said_so(tmp_path: Path, allowed: bool, tried: list[str]) -> None:
    """By the setting or by the backend's own entry; the attempt goes to a loop that refuses it, not to the network."""

    async def main() -> None:
        state, tls = LocalState(tmp_path / "local.json"), ssl.create_default_context()
        for everywhere, here in {(allowed, False), (False, allowed)}:
            backend = LiveBackends(state, tls, everywhere).open(BackendSpec("custom", "http://169.254.169.254:9/v1", allow_link_local=here))
            assert isinstance(backend, CustomBackend)
            loop.tried.clear()
            assert (await ask(backend)).ending == ("refused" if allowed else "forbidden")
            assert loop.tried == tried

    loop = Names({"169.254.169.254": [["169.254.169.254"]]})
    run(main(), loop)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_answers(status: int) -> None:
    async def main() -> None:
        async with Upstream() as elsewhere, Upstream() as up:

            async def away(wire: Wire, seen: Seen) -> None:
                await wire.answer(b"", status, location=elsewhere.url + "/chat/completions")

            up.script = away
            pool = CustomBackend(up.url, "Bearer upstream-secret", forbidden=forbidden_address)
            assert (await ask(pool)).status == status
            assert elsewhere.connections == 0

    run(main())


def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Upstream() as proxy, Upstream() as up:
            for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            assert (await ask(CustomBackend(up.url))).status == 200
            assert (proxy.connections, up.connections) == (0, 1)

    run(main())


async def _closing(wire: Wire, seen: Seen) -> None:
    await wire.answer({}, connection="close")
    wire.close()
