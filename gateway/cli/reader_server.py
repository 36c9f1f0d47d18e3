"""The reader process: answers what only reads the store, for all server processes of the host. It relays nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys

import structlog
import uvloop

from gateway.api.apart import Answering
from gateway.app import Services
from gateway.cli.entry import sentence
from gateway.metering.log import configure_logs
from gateway.settings import Settings, load_settings
from gateway.store.errors import StoreFault, StoreUnavailable

logger = structlog.get_logger(__name__)

_POLL_S = 0.2  # changes on this host are asked for with each request
_NICE = 10  # where a core is short, reports wait for what is relayed


def run() -> None:
    """Until SIGTERM."""
    settings = load_settings()
    configure_logs(settings.log_level)
    os.nice(_NICE)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_read(settings))


async def _read(settings: Settings) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        services = await Services.open(settings)
    except (StoreFault, StoreUnavailable, OSError) as error:  # the server processes have answered themselves until now, and go on
        logger.error("the reader could not start", reason=sentence(error))
        sys.exit(1)
    following = None
    try:
        with contextlib.suppress(StoreUnavailable):
            await services.catch_up()
        following = asyncio.create_task(services.follow(_POLL_S, waited_for=False), name="follow")
        answering = await Answering.open(services.whole_api(), settings.reader_socket, services.be_current)
        gc.collect()
        gc.freeze()
        await stop.wait()
        await answering.close(settings.drain_s)
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await services.close()
