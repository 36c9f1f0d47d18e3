"""Who decides on limits: this host, or Redis for all hosts on one database. Without Redis a second host cannot know what the first one
admits, so it refuses whoever has limits, and says why, for as long as another is there that came before.

No two of them count at once. One that is not heard of for `hosts.FRESH_S` is taken for gone, so one that knows of others and cannot write
that it is here stops counting before that. One that takes over first reads what was spent while it did not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable
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
UNHEARD_S = 25.0  # others take this host for gone a little later
_MIND_S = 1.0
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
    """The limiter of a server process. `use`: puts one in force; `own`: this host's, `spent`: as of `SharedLimiter`. `read_spent`: reads
    again what `spent` says, of all that have limits; raises `StoreUnavailable`. `clock`: seconds, of any origin.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database,
        own: SharedLimiter,
        use: Callable[[Limiter], None],
        spent: Spent,
        read_spent: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._db = db
        self._own = own
        self._use = use
        self._spent = spent
        self._read_spent = read_spent
        self._clock = clock
        self._over_hosts: HostsLimiter | None = None
        self._counts = True
        self._host_id = ""
        self._since_s: float | None = None
        self._heard_s = -math.inf  # when this host last began to say that it is here, and was heard
        self._others = False  # there were some then
        self._tasks: list[asyncio.Task[None]] = []

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
            await self.look()
            watching, minding = asyncio.create_task(self._watch(), name="hosts"), asyncio.create_task(self._mind(), name="unheard")
            self._tasks = [watching, minding]

    async def look_at_books(self) -> None:
        """What is told to Redis of budgets follows what the ledger has by now. Raises `StoreUnavailable`."""
        if self._over_hosts is None:
            return
        rest = iter(self._over_hosts.budgets().items())
        while some := dict(islice(rest, _AT_ONCE)):
            now_s = time.time()
            async with self._db.look() as conn:
                spent = await spent_in_windows(conn, some, now_s)
            self._over_hosts.booked(some, spent, now_s)

    @property
    def away(self) -> bool | None:
        """Redis is; None: it is not used."""
        return None if self._over_hosts is None else self._over_hosts.away

    async def close(self) -> None:
        """After the last request has settled."""
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            with contextlib.suppress(StoreUnavailable):
                async with self._db.write() as conn:
                    await hosts.leave(conn, self._host_id)
        if self._over_hosts is not None:
            await self._over_hosts.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self.look()
            except StoreUnavailable:
                pass  # what was so stays so: see `_mind`
            except Exception:
                logger.exception("other hosts could not be looked for")

    async def _mind(self) -> None:
        """Beside `_watch`, which a lost network may hold for a minute."""
        while True:
            await asyncio.sleep(_MIND_S)
            self.stop_if_unheard()

    def stop_if_unheard(self) -> None:
        if self._counts and self._others and self._over_hosts is None and self._unheard:
            self._set(False, "limited callers are refused: the database does not answer, and another host may count limits now")

    @property
    def _unheard(self) -> bool:
        return self._clock() - self._heard_s > UNHEARD_S

    async def look(self) -> None:
        """Say that this host is here, see who else is, and count or do not."""
        counts = await self._announce()
        if counts and not self._counts:
            await self._catch_up()
            counts = await self._announce() and not self._unheard
        if counts and not self._counts:
            self._own.forget()
            self._set(True, "this host counts limits again")
        elif self._counts and not counts:
            self._set(False, "limited callers are refused: another host uses this database, and GATEWAY_REDIS_URL is not set")

    async def _announce(self) -> bool:
        """Say that this host is here. Is it the one that counts?"""
        shares, asked_s = self._over_hosts is not None, self._clock()
        known_s = self._since_s if asked_s - self._heard_s < hosts.FRESH_S else None  # others may have come first meanwhile
        async with self._db.write() as conn:
            me, others = await hosts.announce(conn, self._host_id, shares, known_s)
        self._since_s, self._heard_s, self._others = me.since_s, asked_s, bool(others)
        return shares or not any(other.shares or (other.since_s, other.id) < (me.since_s, me.id) for other in others)

    async def _catch_up(self) -> None:
        """Read what others have let callers spend. It may take a while, in which this host is not to be taken for gone."""
        reading = asyncio.ensure_future(self._read_spent())
        try:
            while not (await asyncio.wait((reading,), timeout=WATCH_S))[0]:
                await self._announce()
            await reading
        finally:
            reading.cancel()

    def _set(self, counts: bool, why: str) -> None:
        self._counts = counts
        self._use(self._own if counts else Uncounted())
        (logger.warning if counts else logger.error)(why)


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
