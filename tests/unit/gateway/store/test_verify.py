"""What `gateway ledger verify` finds: each kind of damage, and nothing where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest

from gateway.keeper.segments import verify_segments
from gateway.keeper.ship import Shipper
from gateway.metering.ledger import SegmentWriter
from gateway.metering.record import UsageRecord
from gateway.store import booking, days, requests, usage
from gateway.store.days import DAY_S, day_of, name_of
from gateway.store.engine import Database
from gateway.store.rollups import WEEK_S
from gateway.store.rows import recomputed_pusd
from gateway.store.usage import Wanted
from gateway.store.verify import MOST_FAULTS, Fault, days_to_verify, verify_day, verify_week, weeks_with

from .test_reports import rows_at_random
from .test_usage import NOON, row

TODAY = name_of(day_of(NOON))


def record(number: int, at: float = NOON) -> UsageRecord:
    return UsageRecord(
        f"req-{number:04d}", at, "chat", "k1", "u1", "chat", 1, None, "b", 1, 200, "success", 1000, 10, "backend",
        1000 * 150_000 + 10 * 600_000, 12.5, price="0.15/0.60/",
    )  # fmt: skip


async def faults_of(db: Database) -> list[Fault]:
    there, found = await days_to_verify(db)
    for day in there:
        found += (await verify_day(db, day)).faults
    for week in weeks_with(there):
        found += (await verify_week(db, week)).faults
    return found


async def change(db: Database, statement: str) -> None:
    async with db.write() as conn:
        await conn.exec_driver_sql(statement)


@pytest.fixture
async def books(db: Database) -> AsyncIterator[Database]:
    async with db.write() as conn:
        await booking.insert_usage(conn, rows_at_random(300), "a.seg", 1)
        await booking.insert_usage(conn, [row(9001, cost_pusd=10 * 150_000 + 5 * 600_000, price="0.15/0.60/")], "a.seg", 2)
    assert await faults_of(db) == []
    yield db


async def test_large_batches_are_booked_as_small_ones(db: Database) -> None:
    """What all rows of a large batch share goes to the database once: whatever that is."""
    mixed = rows_at_random(4000)  # six days of some hundred rows each
    alike = [asdict(record(number)) for number in range(5000, 5700)]
    some = [asdict(record(number)) | {"key_id": None, "tried": '[["b","timeout",3]]', "team_id": "t"} for number in range(5700, 6400)]
    async with db.write() as conn:
        for offset, batch in enumerate((mixed, alike, alike + some, [mixed[0], *mixed]), 1):
            await booking.insert_usage(conn, batch, "a.seg", offset)
    assert await faults_of(db) == []
    async with db.read() as conn:
        for one in (mixed[0], alike[3], some[-1]):
            assert await requests.usage_row(conn, one["request_id"]) == one
        (total,) = await usage.whole_report(conn, "all", Wanted())
    assert total.requests == 5400


@pytest.mark.parametrize(
    "change_to", ["completion_tokens = 6", "user_id = 'u9'", "started_at = started_at + 1", "tried = '[]'", "ttft_ms = 1", "digest = key"]
)
async def test_an_altered_row_is_named(books: Database, change_to: str, dialect: str) -> None:
    zeros = "zeroblob(16)" if dialect == "sqlite" else "decode(repeat('00', 16), 'hex')"
    await change(books, f"UPDATE {TODAY} SET {change_to.replace('key', zeros)} WHERE request_id = 'req-9001'")
    assert ("row", "req-9001") in [(fault.kind, fault.where) for fault in await faults_of(books)]


async def test_a_removed_row_shows_in_the_roll_ups(books: Database) -> None:
    await change(books, f"DELETE FROM {TODAY} WHERE request_id = 'req-9001'")
    found = await faults_of(books)
    assert {fault.kind for fault in found} == {"rollup"}
    assert any(fault.where.startswith("by hour: at 2026-03-01T12, user_id u1, key_id k1") for fault in found)


@pytest.mark.parametrize("table", ["usage_by_hour", "usage_by_day", "usage_totals", "usage_of_each_day", "usage_of_each_week"])
@pytest.mark.parametrize("figure", ["requests = requests + 1", "cached_tokens = cached_tokens + 1", "cost_rest_pusd = cost_rest_pusd - 1"])
async def test_a_roll_up_that_disagrees_is_named(books: Database, table: str, figure: str) -> None:
    step_s = WEEK_S if table == "usage_of_each_week" else DAY_S
    at = int(NOON // step_s * step_s)
    await change(books, f"UPDATE {table} SET {figure} WHERE at >= {at} AND at < {at + step_s}")
    found = await faults_of(books)
    assert {fault.kind for fault in found} == {"rollup"}
    assert len(found) <= (2 if table == "usage_of_each_day" else 1) * MOST_FAULTS, "its weeks disagree with changed days, too"


async def test_a_bucket_of_nothing_is_named(books: Database) -> None:
    at = int(NOON // DAY_S * DAY_S)
    await change(books, f"DELETE FROM usage_totals WHERE kind = '/all' AND step_s = 86400 AND at = {at}")
    (fault,) = await faults_of(books)
    assert "nothing" in fault.message
    await change(books, f"INSERT INTO usage_of_each_day VALUES ('/key', '', {at}, 'ghost', '', 1, 1, 1, 0, 0, 0, 0)")
    assert len(await faults_of(books)) == 3, "it is in no week either"


async def test_a_cost_that_is_not_its_prices_is_named(db: Database) -> None:
    """Booked so: digest and roll-ups agree with it."""
    async with db.write() as conn:
        batch = [row(1, price="0.15/0.60/", cost_pusd=1), row(2, price="free", cost_pusd=1), row(3, price=None, cost_pusd=1)]
        await booking.insert_usage(conn, batch, "a.seg", 1)
    assert [fault.where for fault in await faults_of(db)] == ["req-1", "req-2"]
    assert recomputed_pusd("0.15/0.60/0.075", 100, 10, 40) == 60 * 150_000 + 40 * 75_000 + 10 * 600_000
    assert recomputed_pusd("0/0.000001/", 5, 7, 5) == 7


async def test_a_cost_that_a_row_cannot_hold_is_booked_as_the_most(db: Database) -> None:
    async with db.write() as conn:
        batch = [row(1, price="0/10000/", completion_tokens=10**9, cost_pusd=2**63 - 1)]
        await booking.insert_usage(conn, batch, "a.seg", 1)
    assert await faults_of(db) == []


async def test_a_day_that_is_gone_is_named_unless_its_end_had_come(books: Database) -> None:
    await change(books, f"DROP TABLE {TODAY}")
    assert [(fault.kind, fault.where) for fault in await faults_of(books)] == [("day", "2026-03-01")]
    await days.drop_before(books, NOON + 2 * DAY_S)
    assert await faults_of(books) == []


async def shipped(db: Database, folder: Path, writer: SegmentWriter, *records: UsageRecord) -> None:
    for one in records:
        writer.begin(one, 1, 1)
        writer.end(one)
    shipper = Shipper(db, folder)
    await shipper.ship()
    shipper.close()


async def test_segments_on_disk_agree_with_sql(db: Database, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    writer = SegmentWriter(folder, segment_bytes=6000)
    for number in range(30):
        await shipped(db, folder, writer, record(number))
    writer.begin(record(99), 1, 1)  # still runs
    assert (await verify_segments(db, folder)).faults == []
    assert await faults_of(db) == []
    (path,) = folder.glob("*.seg")
    assert not path.name.endswith("-000000.seg")

    await change(db, f"DELETE FROM {TODAY} WHERE request_id = 'req-0029'")
    (fault,) = (await verify_segments(db, folder)).faults
    assert (fault.kind, fault.where) == ("row", "req-0029")
    path.rename(tmp_path / "aside")
    (fault,) = (await verify_segments(db, folder)).faults
    assert (fault.kind, fault.where) == ("segment", path.name)
    writer.close()


async def test_a_segment_that_was_lost_before_it_was_shipped_leaves_a_gap(db: Database, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    writer = SegmentWriter(folder, segment_bytes=6000)
    for number in range(60):
        writer.begin(record(number), 1, 1)
        writer.end(record(number))
    paths = sorted(folder.glob("*.seg"))
    assert len(paths) > 2
    paths[1].unlink()
    (fault,) = (await verify_segments(db, folder)).faults
    assert (fault.kind, fault.where) == ("segment", paths[1].name)
    writer.close()


@pytest.mark.parametrize("damage", ["torn", "short"])
async def test_a_damaged_segment_is_named(db: Database, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "ledger"
    writer = SegmentWriter(folder)
    await shipped(db, folder, writer, record(1), record(2))
    (path,) = folder.glob("*.seg")
    with path.open("r+b") as file:
        if damage == "torn":
            file.seek(20)
            file.write(b'"\xff')
        else:
            file.truncate(100)
    (fault,) = (await verify_segments(db, folder)).faults
    assert (fault.kind, fault.where) == ("segment", path.name)
    if damage == "torn":
        writer.close()


async def test_a_busy_gateway_is_silent(db: Database, database_url: str, tmp_path: Path) -> None:
    """Rows of two days are shipped and segments finish while the books are read again and again."""
    folder, busy = tmp_path / "ledger", Database(database_url)
    writer, shipper = SegmentWriter(folder, segment_bytes=40_000), Shipper(busy, tmp_path / "ledger")
    assert shipper.acquire()
    done = asyncio.Event()

    async def work() -> None:
        for number in range(0, 3000, 20):
            for one in range(number, number + 20):
                writer.begin(record(one, NOON + (one % 2) * DAY_S), 1, 1)
                writer.end(record(one, NOON + (one % 2) * DAY_S))
            await shipper.ship()
        done.set()

    working = asyncio.create_task(work())
    looks = 0
    while not done.is_set() or looks == 0:
        assert (await verify_segments(db, folder)).faults == []
        assert await faults_of(db) == []
        looks += 1
    await working
    assert looks > 2
    writer.close()
    shipper.close()
    await busy.close()
