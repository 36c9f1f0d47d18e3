"""Who counts limits without Redis: one host at a time, and with what others have let callers spend."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from auth.principal import Budget, Limited, Limits
from gateway.errors import GatewayError, Unavailable
from gateway.hosts import HostLimits
from gateway.limits.base import Limiter, Permit, Refusal
from gateway.limits.hosts import HostsLimiter
from gateway.metering.record import UsageRecord
from gateway.settings import Settings
from gateway.store import booking
from gateway.store.engine import Connection, Database
from gateway.store.errors import StoreUnavailable
from gateway.store.hosts import FRESH_S
from gateway.store.spending import Spending
from tests.host_rows import later
from tests.hosts import ask, until
from tests.levels import own_limiter
from tests.redis_server import RedisServer

LIMITS = {"k": Limits(budget=Budget(100, "month"))}
CALLERS = (Limited("k", LIMITS["k"]),)


@pytest.fixture
def dialect() -> str:
    return "postgres"


class Wire(Database):
    """A host's way to the database, that can be cut."""

    cut = False

    @asynccontextmanager
    async def write(self, *, durable: bool = False) -> AsyncIterator[Connection]:
        if self.cut:
            raise StoreUnavailable("cut")
        async with super().write(durable=durable) as conn:
            yield conn


class Host:
    """A server process on a host of its own. Time goes by for it as `now_s` says."""

    def __init__(self, home: Path, url: str, redis_url: str = "") -> None:
        self.db = Wire(url)
        self.now_s = 0.0
        self.spending = Spending()
        self.own = own_limiter(self.spending.spent)
        self.in_force: Limiter = self.own
        self.fails = False  # to read what was spent
        (home / "run").mkdir(parents=True)
        self.limits = HostLimits(
            Settings(home=home, redis_url=redis_url), self.db, self.own, self._use, self.spending.spent, self.read, lambda: self.now_s
        )

    def _use(self, limiter: Limiter) -> None:
        self.in_force = limiter

    async def read(self) -> None:
        if self.fails:
            raise StoreUnavailable("cut")
        async with self.db.read() as conn:
            await self.spending.read(conn, LIMITS)

    @property
    def counts(self) -> bool:
        return self.in_force is self.own

    def admits(self, cost_pusd: int) -> bool:
        """Raises `Unavailable` where it does not decide."""
        decision = self.in_force.reserve(CALLERS, 0, cost_pusd)
        if isinstance(decision, Refusal):
            return False
        assert hasattr(decision, "settle")
        decision.settle(0, cost_pusd)
        return True

    async def start(self) -> None:
        await self.read()
        await self.limits.start()

    async def close(self) -> None:
        self.db.cut = False
        await self.limits.close()
        self.own.close()
        await self.db.close()


@pytest.fixture
async def hosts(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    """Both have started; the first counts."""
    made = Host(tmp_path / "a", database_url), Host(tmp_path / "b", database_url)
    for host in made:
        await host.start()
    yield made
    for host in made:
        await host.close()


async def book(db: Database, cost_pusd: int) -> None:
    record = UsageRecord("r1", time.time(), "chat", "k", "u", "m", 1, cost_pusd=cost_pusd)
    async with db.write() as conn:
        await booking.insert_usage(conn, [asdict(record)], "segment", 1)


async def gone(host: Host) -> None:
    """The database is, for this host alone."""
    host.db.cut = True
    with pytest.raises(StoreUnavailable):
        await host.limits.look()


async def alone_and_cut_off_for_an_hour(host: Host, other: Host) -> None:
    await other.limits.close()
    await host.limits.look()
    await gone(host)
    host.now_s = 3600


async def test_who_takes_over_counts_on_from_what_others_let_callers_spend(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert a.admits(1)
    with pytest.raises(Unavailable):
        b.admits(1)
    await book(a.db, 99)
    await a.limits.close()
    await b.limits.look()
    assert b.counts
    assert not b.admits(2)
    assert b.admits(1)


async def test_who_has_counted_before_takes_over_with_what_others_let_callers_spend(hosts: tuple[Host, Host]) -> None:
    """It has accounts of its own already, from when it was alone."""
    a, b = hosts
    await a.limits.close()
    await b.limits.look()
    assert b.admits(10)
    await b.limits.close()
    await a.limits.look()
    await b.limits.look()
    assert not b.counts
    await book(a.db, 99)
    await a.limits.close()
    await b.limits.look()
    assert b.counts
    assert not b.admits(2)


async def test_who_cannot_read_what_was_spent_does_not_take_over_yet(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    await book(a.db, 99)
    await a.limits.close()
    b.fails = True
    with pytest.raises(StoreUnavailable):
        await b.limits.look()
    with pytest.raises(Unavailable):
        b.admits(2)
    b.fails = False
    await b.limits.look()
    assert not b.admits(2)


async def test_who_loses_the_database_alone_stops_before_the_other_takes_over(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    await a.limits.look()  # it has seen the other one
    await gone(a)
    a.now_s = FRESH_S - 4
    await later(b.db, FRESH_S - 4)
    a.limits.stop_if_unheard()
    await b.limits.look()
    assert not a.counts
    assert not b.counts
    await later(b.db, 5)
    await b.limits.look()
    assert (a.counts, b.counts) == (False, True)
    with pytest.raises(Unavailable):
        a.admits(1)
    a.db.cut, a.now_s = False, FRESH_S + 1  # it is back, and not the first any more: both never count
    await a.limits.look()
    await b.limits.look()
    assert (a.counts, b.counts) == (False, True)


async def test_a_short_cut_changes_nothing(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    await a.limits.look()
    await gone(a)
    a.now_s = 20
    a.limits.stop_if_unheard()
    assert a.counts
    a.db.cut = False
    await a.limits.look()
    a.now_s = 40
    a.limits.stop_if_unheard()
    assert a.counts


async def test_who_is_alone_counts_on_without_the_database(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    await alone_and_cut_off_for_an_hour(a, b)
    a.limits.stop_if_unheard()
    assert a.counts
    assert a.admits(1)


async def test_who_was_alone_and_cut_off_finds_another_in_its_place(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    await alone_and_cut_off_for_an_hour(a, b)
    await later(b.db, 3600)
    await b.limits.look()
    assert b.counts
    a.db.cut = False
    await a.limits.look()
    await b.limits.look()
    assert (a.counts, b.counts) == (False, True)


async def test_redis_is_told_what_the_books_have_by_now(database_url: str, tmp_path: Path, redis_server: RedisServer) -> None:
    """What nobody asked it for: it was begun before there was a limit."""
    host = Host(tmp_path / "a", database_url, redis_server.url)
    await host.start()
    try:
        await until(lambda: not host.limits.away)
        limiter = host.in_force
        assert isinstance(limiter, HostsLimiter)
        (await admitted(limiter, 1)).settle(0, 1)
        await book(host.db, 99)
        (await admitted(limiter, 2)).settle(0, 0)
        await host.limits.look_at_books()
        assert isinstance(await ask(limiter, CALLERS, 0, 2), Refusal)
        (await admitted(limiter, 1)).settle(0, 1)
    finally:
        await host.close()


async def admitted(limiter: HostsLimiter, cost_pusd: int) -> Permit:
    decision = await ask(limiter, CALLERS, 0, cost_pusd)
    assert not isinstance(decision, Refusal | GatewayError)
    return decision
