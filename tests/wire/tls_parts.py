"""A whole gateway that speaks TLS, and backends that do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from dataclasses import dataclass, field

import httpx

from tests.faults.client import Client
from tests.gateway_process import START_S, Gateway
from tests.upstream import Script, Upstream
from tests.wire.authority import HOST


@dataclass
class TlsGateway(Gateway):
    """`context` is what its clients use."""

    context: ssl.SSLContext | bool = True
    clients: list[Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def http(self, **more: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.context, trust_env=False, timeout=20, **more)  # type: ignore[arg-type]

    async def connect(self, receive_buffer: int | None = None) -> Client:
        """A raw connection."""
        raw = socket.socket()
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (HOST, self.port))
        assert isinstance(self.context, ssl.SSLContext)
        client = Client(*await asyncio.open_connection(sock=raw, ssl=self.context, server_hostname=HOST, limit=64 * 1024))
        self.clients.append(client)
        return client

    async def drop_clients(self) -> None:
        """TLS says goodbye in several steps; a test that is over does not wait for them."""
        while self.clients:
            await _drop(self.clients.pop().writer)

    def wait_ready(self, within_s: float = START_S) -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"the gateway ended:\n{self.log()}"
            with contextlib.suppress(httpx.HTTPError), self.http() as http:
                if http.get("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready within {within_s} s:\n{self.log()}")


class TlsUpstream(Upstream):
    """Listens on a port that was chosen before, with TLS."""

    def __init__(self, context: ssl.SSLContext | None, port: int, script: Script | None = None) -> None:
        super().__init__(script)
        self._context = context
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> TlsUpstream:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, ssl=self._context)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await super().__aexit__(*exc)
        for writer in self._writers:
            await _drop(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await super()._serve(reader, writer)


async def _drop(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
