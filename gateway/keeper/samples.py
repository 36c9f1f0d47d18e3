"""Metric samples: this host's own /metrics, read over loopback like any Prometheus would; what was added since is written to SQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from gateway import own_client
from gateway.metering.exposition import parse
from gateway.metering.sampled import LINES, Figures, between, read
from gateway.store import samples
from gateway.store.engine import Database
from gateway.store.samples import STEP_S

_LATE_STEPS = 20  # what was missed longer than this is a gap
_FIRST_S = 0.5


def client(run_dir: Path) -> httpx.AsyncClient:
    """One for the keeper's life. To ourselves: no proxy is asked, and a certificate would name the public host, not this address."""
    return httpx.AsyncClient(trust_env=False, verify=own_client.context(run_dir), timeout=5)


async def scrape(client: httpx.AsyncClient, server_url: str) -> Figures | None:
    """What the server's metrics are now, over all its processes; None while it does not answer."""
    try:
        answer = await client.get(f"{server_url}/metrics")
    except httpx.HTTPError:
        return None
    if answer.status_code != 200:
        return None
    return await asyncio.to_thread(lambda: read(parse(answer.text, LINES)))  # a thousand models: half a second


class Sampler:
    """Reads again and again; the first time only to know from where to count.

    What could not be written (the database is away) or read is made up for by the next time, evenly over the steps between, unless it is
    too long ago or the server began anew meanwhile: then nobody knows when it was, and it is left out, or counted in the last step.
    """

    def __init__(self, db: Database, scrape: Callable[[], Awaitable[Figures | None]], now: Callable[[], float] = time.time) -> None:
        self._db = db
        self._scrape = scrape
        self._now = now
        self._before: tuple[int, Figures] | None = None

    async def look(self) -> None:
        """The first time it waits for the server: what that does from its first second on is counted. Raises `StoreUnavailable`."""
        place, figures = int(self._now() // STEP_S), await self._scrape()
        while figures is None and self._before is None:
            await asyncio.sleep(_FIRST_S)
            place, figures = int(self._now() // STEP_S), await self._scrape()
        if figures is None:
            return
        if self._before is None or not 0 <= place - self._before[0] <= _LATE_STEPS:  # below 0: the clock was put back
            self._before = (place, figures)
            return
        before_place, before = self._before
        if place == before_place:
            return
        added, anew = between(before, figures)
        async with self._db.write() as conn:
            await samples.add(conn, [place - 1] if anew else list(range(before_place, place)), added)
        self._before = (place, figures)
