"""The database dies in the middle of a shipment, or is away: nothing is lost, nothing is booked twice, and the books agree."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.keeper.segments import verify_segments
from gateway.keeper.ship import Shipper
from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import UsageRecord
from gateway.store import requests
from gateway.store.engine import Database
from gateway.store.errors import StoreUnavailable
from gateway.store.usage import Wanted, whole_report
from gateway.store.verify import days_to_verify, verify_day, verify_week, weeks_with
from tests.databases import Postgres

NOON, DAY_S = 1_772_366_400.0, 86_400.0
KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"


def record(number: int) -> UsageRecord:
    at = NOON + (number % 3) * DAY_S
    return UsageRecord(f"req-{number:06d}", at, "chat", f"k{number % 7}", "u", "m", 1, None, "b", 1, 200, "success", 10, 5, "backend", 7)


def write(writer: SegmentWriter, numbers: range) -> None:
    for number in numbers:
        writer.begin(record(number), 1, 1)
        writer.end(record(number))


async def check(db: Database, folder: Path, count: int) -> None:
    days, faults = await days_to_verify(db)
    found = [await verify_day(db, day) for day in days] + [await verify_week(db, week) for week in weeks_with(days)]
    assert faults + [fault for one in found for fault in one.faults] == []
    assert (await verify_segments(db, folder)).faults == []
    assert sum(one.rows for one in found) == count
    async with db.read() as conn:
        assert sum(line.requests for line in await whole_report(conn, "key", Wanted())) == count
        assert len(await requests.rows_since(conn, 0, limit=count + 1)) == count


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
async def test_connections_killed_while_it_ships(db: Database, database_url: str, postgres: Postgres, tmp_path: Path) -> None:
    """At any moment of a shipment, again and again; the shipper goes on where its offset says."""
    folder, name = tmp_path / "ledger", database_url.rpartition("/")[2].partition("?")[0]
    writer, shipper = SegmentWriter(folder, segment_bytes=60_000), Shipper(db, tmp_path / "ledger")
    assert shipper.acquire()
    admin = await asyncpg.connect(postgres.url())
    failed = 0
    try:
        for turn in range(30):
            write(writer, range(turn * 200, turn * 200 + 200))
            shipping = asyncio.create_task(shipper.ship())
            await asyncio.wait([shipping], timeout=0.002 * (turn % 10))
            await admin.execute(KILL, name)
            try:
                await shipping
            except StoreUnavailable:
                failed += 1
        assert failed > 3, "it was never hit"
    finally:
        await admin.close()
    await shipped(shipper)
    await check(db, folder, 6000)
    writer.close()
    shipper.close()


async def shipped(shipper: Shipper) -> None:
    for _ in range(20):
        try:
            await shipper.ship()
            return
        except StoreUnavailable:
            await asyncio.sleep(0.05)  # connections that were killed are found to be so one by one
    raise AssertionError("the database does not come back")


class Away(Database):
    """A database that goes away when it is told to: each transaction fails, at its start or at its end."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.fail_after: int | None = None

    def write(self, *, durable: bool = False) -> Any:
        return _FailingWrite(self, super().write(durable=durable))


class _FailingWrite:
    def __init__(self, db: Away, inner: Any) -> None:
        self._db, self._inner = db, inner

    async def __aenter__(self) -> Any:
        conn = await self._inner.__aenter__()
        if self._db.fail_after == 0:
            await self._inner.__aexit__(StoreUnavailable, StoreUnavailable("away"), None)
            raise StoreUnavailable("away")
        return conn

    async def __aexit__(self, *error: Any) -> Any:
        if error[0] is None and self._db.fail_after is not None:
            self._db.fail_after -= 1
            if self._db.fail_after < 0:
                cut = StoreUnavailable("cut off before the commit")
                await self._inner.__aexit__(StoreUnavailable, cut, None)
                raise cut
        return await self._inner.__aexit__(*error)


async def test_the_database_away_between_any_two_transactions(database_url: str, tmp_path: Path) -> None:
    """Also between the making of a day's table and its first rows, and before a segment is noted as finished."""
    folder, db = tmp_path / "ledger", Away(database_url)
    writer, shipper = SegmentWriter(folder, segment_bytes=20_000), Shipper(db, tmp_path / "ledger")
    assert shipper.acquire()
    for turn in range(12):
        write(writer, range(turn * 40, turn * 40 + 40))
        db.fail_after = turn % 6
        for _ in range(2):
            try:
                await shipper.ship()
            except StoreUnavailable:
                db.fail_after = 0
        if turn % 4 == 3:  # another keeper takes over
            shipper.close()
            shipper = Shipper(db, folder)
            assert shipper.acquire()
    db.fail_after = None
    await shipper.ship()
    await check(db, folder, 480)
    writer.close()
    await shipper.ship()
    await check(db, folder, 480)
    assert list(folder.glob("*.seg")) == []
    shipper.close()
    await db.close()


async def test_a_table_dropped_beneath_the_keeper_is_made_again(db: Database, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    writer, shipper = SegmentWriter(folder), Shipper(db, folder)
    write(writer, range(3))
    await shipper.ship()
    async with db.write() as conn:
        await conn.exec_driver_sql("DROP TABLE usage_20260301")
    write(writer, range(3, 6))
    assert await shipper.ship() == 0  # the log says why
    assert await shipper.ship() == 3
    assert not list(folder.glob("refused*"))
    async with db.read() as conn:
        assert {row["request_id"] for row in await requests.rows_since(conn, 0)} == {f"req-{n:06d}" for n in (1, 2, 3, 4, 5)}
    writer.close()
    shipper.close()
