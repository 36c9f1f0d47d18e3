"""One server process: uvicorn with the relay below ASGI and the control plane above it.

Signals and draining are ours: uvicorn would raise SIGTERM again after a clean shutdown, and it waits for tasks, of which relays have none.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import structlog
import uvicorn
import uvloop

from gateway.app import Services
from gateway.cli.entry import sentence
from gateway.cli.form import other_form
from gateway.cli.output import CommandFailed
from gateway.cli.tls import ServerTls
from gateway.metering.log import configure_logs
from gateway.relay.edge import KEEP_ALIVE_S, Edge, edge_class, tick
from gateway.settings import Settings, load_settings
from gateway.store.errors import StoreFault, StoreUnavailable

logger = structlog.get_logger(__name__)

_LINGER_S = 0.25  # idle connections live this long into a drain, so that a request already on its way is answered


class RelayServer(uvicorn.Server):
    """uvicorn's server with our signals, and a drain that knows of relays."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self._services.relay.draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let what runs finish for `drain_s`, end and settle the rest, close."""
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        edges = cast("set[Edge]", self.server_state.connections)
        for edge in list(edges):
            edge.shutdown()
        loop = asyncio.get_running_loop()
        started = loop.time()
        while (now := loop.time() - started) < self._services.settings.drain_s:
            if now > _LINGER_S and not any(edge.busy for edge in edges):
                break
            await asyncio.sleep(0.02)
        cut = [edge for edge in edges if edge.busy]
        for edge in list(edges):
            edge.end_now()
        await asyncio.sleep(0)
        logger.info("drained", ended_requests=len(cut))


def run(fd: int, compose: Callable[[Settings], Awaitable[Services]] | None = None) -> None:
    """Serve on the listening socket `fd` until SIGTERM. `compose`: other services than those of the settings."""
    settings = load_settings()
    configure_logs(settings.log_level)
    _raise_descriptor_limit()
    gc.set_threshold(50_000, 20, 20)  # requests leave no cycles behind: the collector need not look after every few of them
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, [socket.socket(fileno=fd)], compose or Services.open))


async def _serve(settings: Settings, sockets: list[socket.socket], compose: Callable[[Settings], Awaitable[Services]]) -> None:
    try:
        tls = ServerTls.of(settings)
        services = await compose(settings)
    except (CommandFailed, StoreFault, StoreUnavailable, OSError) as error:  # faults of the machine, not of the program: no traceback
        logger.error("the server could not start", reason=sentence(error))
        sys.exit(1)
    if (changed := other_form(os.environ)) is not None:
        logger.error("limits are counted twice", reason=changed)
    config = uvicorn.Config(
        services.asgi(),
        http=edge_class(services.relay),
        loop="none",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=int(KEEP_ALIVE_S),
        ssl_context_factory=None if tls is None else lambda *_: tls.context,
    )
    server = RelayServer(config, services)
    with contextlib.suppress(StoreUnavailable):
        await services.catch_up()  # with what changed while it loaded: the first connection may be of a key that was revoked meanwhile
    background = [
        asyncio.create_task(services.follow(), name="follow"),
        asyncio.create_task(tick(services.relay, cast("set[Edge]", server.server_state.connections)), name="tick"),
    ]
    if tls is not None:
        background.append(asyncio.create_task(tls.follow(), name="tls"))
    gc.collect()
    gc.freeze()  # what is loaded now stays: the collector need not look at it again
    try:
        await server.serve(sockets)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await services.close()


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
