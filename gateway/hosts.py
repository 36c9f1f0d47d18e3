"""Who decides on limits: this host, or Redis for all hosts on one database. Without Redis a second host cannot know what the first one
admits, so it refuses whoever has limits, and says why, for as long as another is there that came before.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from auth.principal import Limited
from gateway.errors import Unavailable
from gateway.limits.base import FREE, Limiter, Pending, Permit, Refusal
from gateway.limits.shared import SharedLimiter
from gateway.settings import Settings
from gateway.store import hosts
from gateway.store.engine import Database
from gateway.store.errors import StoreUnavailable
from gateway.store.spending import spent_in_windows

if TYPE_CHECKING:
    from gateway.limits.hosts import HostsLimiter

logger = structlog.get_logger(__name__)

Spent = Callable[[str, str | None], tuple[int, int]]

WATCH_S = 5.0
_AT_ONCE = 100
_ALONE = "Several hosts serve this gateway, and without GATEWAY_REDIS_URL they cannot share limits; its operator has to set it."


class Uncounted:
    """Implements `Limiter`: nobody here can count for all."""

    def reserve(self, callers: tuple[Limited, ...], tokens: int, cost_pusd: int) -> Permit | Refusal | Pending:
        if any(caller.limits.limited for caller in callers):
            raise Unavailable(_ALONE, code="limits_unavailable", retry_after_s=hosts.FRESH_S)
        return FREE

    def headers(self, callers: tuple[Limited, ...]) -> bytes:
        return b""


class HostLimits:
    """The limiter of a server process. `use`: puts one in force; `own`: this host's, `spent`: as of `SharedLimiter`."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        own: SharedLimiter,
        use: Callable[[Limiter], None],
        spent: Spent,
    ) -> None:
        self._settings = settings
        self._db = db
        self._own = own
        self._use = use
        self._spent = spent
        self._over_hosts: HostsLimiter | None = None
        self._counts = True
        self._host_id = ""
        self._since_s: float | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Before the first request. Raises `StoreUnavailable`."""
        settings = self._settings
        if settings.redis_url:
            async with self._db.write() as conn:
                installation = await hosts.installation(conn, secrets.token_hex(8))
            self._over_hosts = _over_hosts(settings, self._own, installation, self._spent)
            self._use(self._over_hosts)
            await self._over_hosts.start()
        if self._db.dialect == "postgresql":  # a SQLite file is used by one host
            self._host_id = _host_id(settings.run_dir / "host")
            await self._look()
            self._watching = asyncio.create_task(self._watch(), name="hosts")

    async def look_at_books(self) -> None:
        """What is told to Redis of budgets follows what the ledger has by now. Raises `StoreUnavailable`."""
        if self._over_hosts is None:
            return
        rest = iter(self._over_hosts.budgets().items())
        while some := dict(islice(rest, _AT_ONCE)):
            now_s = time.time()
            async with self._db.read() as conn:
                spent = await spent_in_windows(conn, some, now_s)
            self._over_hosts.booked(some, spent, now_s)

    @property
    def away(self) -> bool | None:
        """Redis is; None: it is not used."""
        return None if self._over_hosts is None else self._over_hosts.away

    async def close(self) -> None:
        """After the last request has settled."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            with contextlib.suppress(StoreUnavailable):
                async with self._db.write() as conn:
                    await hosts.leave(conn, self._host_id)
        if self._over_hosts is not None:
            await self._over_hosts.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self._look()
            except StoreUnavailable:
                pass  # what was so stays so
            except Exception:
                logger.exception("other hosts could not be looked for")

    async def _look(self) -> None:
        """Say that this host is here, and see who else is."""
        shares = self._over_hosts is not None
        async with self._db.write() as conn:
            me, others = await hosts.announce(conn, self._host_id, time.time(), shares, self._since_s)
        self._since_s = me.since_s
        counts = shares or not any(other.shares or (other.since_s, other.id) < (me.since_s, me.id) for other in others)
        if counts != self._counts:
            self._counts = counts
            self._use(self._own if counts else Uncounted())
            if counts:
                logger.warning("this host counts limits again")
            else:
                logger.error("limited callers are refused: another host uses this database, and GATEWAY_REDIS_URL is not set")


def _over_hosts(settings: Settings, own: SharedLimiter, installation: str, spent: Spent) -> HostsLimiter:
    from gateway.limits.hosts import HostsLimiter  # where Redis is not used, nothing of it is loaded
    from gateway.limits.redis import RedisLink

    url, prefix = settings.redis_url, f"{{gateway-{installation}}}"
    return HostsLimiter(own, lambda process: RedisLink(url, prefix, process), spent, alone=settings.redis_away == "open")


def _host_id(path: Path) -> str:
    """Of this home, whichever process comes first."""
    if not path.exists():
        own = path.with_name(f"host-{secrets.token_hex(8)}")
        own.write_text(own.name)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(own)
        own.unlink()
    return path.read_text()
