"""Tables of days: made when they are needed, by several at once; dropped whole; rows found through them."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import text

from gateway.store import booking, days, requests, segments, usage
from gateway.store.days import DAY_S, Days, day_of, name_of
from gateway.store.engine import Database
from gateway.store.usage import Wanted

from .test_usage import NOON, row


async def ship(db: Database, rows: list[dict[str, Any]]) -> int:
    async with db.write() as conn:
        return await booking.insert_usage(conn, rows, "a.seg", 1)


def test_names() -> None:
    assert name_of(day_of(NOON)) == "usage_20260301"
    assert days.day_named("usage_20260301") == day_of(NOON)
    assert day_of(NOON // DAY_S * DAY_S) == day_of(NOON)
    assert day_of(NOON // DAY_S * DAY_S - 0.001) == day_of(NOON) - 1


async def test_a_batch_that_spans_days_goes_to_each(db: Database) -> None:
    batch = [row(n, started_at=NOON + n * 43_200) for n in range(7)]
    assert await ship(db, batch) == 7
    assert await ship(db, [*batch[3:], row(9, started_at=NOON + DAY_S)]) == 1
    async with db.read() as conn:
        assert await days.existing(conn) == [day_of(NOON) + n for n in (3, 2, 1, 0)]
        assert await days.existing(conn, NOON + DAY_S, NOON + 2 * DAY_S) == [day_of(NOON) + n for n in (2, 1)]
        for one in batch:
            assert await requests.usage_row(conn, one["request_id"]) == one
        assert await requests.usage_row(conn, "none") is None
        (total,) = await usage.whole_report(conn, "key", Wanted())
        assert total.requests == 8


async def test_several_hosts_meet_a_new_day_at_once(db: Database, database_url: str) -> None:
    hosts = [Database(database_url) for _ in range(6)]
    values = [row(1).get(name) for name in days.COLUMNS]

    async def host(number: int, one: Database) -> int:
        known = Days()
        mine = [f"req-{number}", *values[1:]]
        await known.ready(one, [NOON, NOON + DAY_S])
        async with one.write() as conn:
            return await booking.insert_columns(conn, [[value] for value in mine], f"{number}.seg", 1)

    assert await asyncio.gather(*(host(number, one) for number, one in enumerate(hosts))) == [1] * 6
    for one in hosts:
        await one.close()
    async with db.read() as conn:
        assert (await conn.execute(text(f"SELECT count(*) FROM {name_of(day_of(NOON))}"))).scalar_one() == 6
        (total,) = await usage.whole_report(conn, "model", Wanted())
        assert total.requests == 6


async def test_days_are_dropped_whole_at_their_end_and_reports_stay(db: Database) -> None:
    await ship(db, [row(n, started_at=NOON + n * DAY_S) for n in range(5)])
    midnight = day_of(NOON) * DAY_S
    assert await days.drop_before(db, midnight + 2 * DAY_S - 1) == ["usage_20260301"]
    assert await days.drop_before(db, midnight + 3 * DAY_S) == ["usage_20260302", "usage_20260303"]
    assert await days.drop_before(db, midnight + 3 * DAY_S) == []
    async with db.read() as conn:
        assert await days.existing(conn) == [day_of(NOON) + 4, day_of(NOON) + 3]
        assert await days.kept_from(conn) == day_of(NOON) + 3
        assert len(await usage.whole_report(conn, "day", Wanted())) == 5
        assert await requests.usage_row(conn, "req-0") is None
        assert [r["request_id"] for r in await requests.rows_since(conn, 0)] == ["req-3", "req-4"]


async def test_rows_of_a_key_newest_first_in_pages(db: Database) -> None:
    mine = [row(n, started_at=NOON + 30_000 + (n // 4) * 1000) for n in range(40)]  # four at each moment, over midnight
    others = [row(100 + n, key_id=("k2", None)[n % 2], started_at=NOON + 30_000 + n * 100, user_id=f"u{n % 4}") for n in range(40)]
    await ship(db, [*mine, *others])
    seen: list[str] = []
    before: tuple[float, str] | None = None
    async with db.read() as conn:
        while page := await requests.of_key(conn, "k1", NOON, NOON + DAY_S, before=before, limit=7):
            seen += [r["request_id"] for r in page]
            before = (page[-1]["started_at"], page[-1]["request_id"])
        expected = sorted(mine, key=lambda r: (r["started_at"], r["request_id"]), reverse=True)
        assert seen == [r["request_id"] for r in expected]
        by_login = await requests.of_key(conn, None, NOON, NOON + DAY_S, only={"user_id": "u1"})
        assert {r["request_id"] for r in by_login} == {f"req-{100 + n}" for n in range(1, 40, 4)}
        assert await requests.of_key(conn, "k1", NOON, NOON + 30_000) == []


async def test_a_request_and_a_page_are_found_by_an_index(db: Database, dialect: str) -> None:
    await ship(db, [row(1)])
    if dialect != "sqlite":
        return  # a planner that knows how few rows there are takes none
    name = name_of(day_of(NOON))
    async with db.read() as conn:
        for where in ("request_id = 'x'", "key_id = 'k' AND started_at > 1 AND started_at < 2", "key_id IS NULL AND started_at > 1"):
            plan = " ".join(r[3] for r in await conn.exec_driver_sql(f"EXPLAIN QUERY PLAN SELECT * FROM {name} WHERE {where}"))
            assert "SEARCH" in plan, plan


async def test_segments_are_remembered_until_their_writer_is_long_gone(db: Database) -> None:
    async with db.write() as conn:
        assert await segments.see(conn, "1-aa-000000.seg", "here") == 0
        await booking.insert_columns(conn, [[] for _ in days.COLUMNS], "1-aa-000000.seg", 500)
        assert await segments.see(conn, "1-aa-000000.seg", "here") == 500
        await segments.see(conn, "1-aa-000001.seg", "here")
        await segments.finish(conn, "1-aa-000000.seg")
        await segments.see(conn, "2-bb-000000.seg", "here")
        await segments.finish(conn, "2-bb-000000.seg")
        assert await segments.open_offsets(conn) == {"1-aa-000001.seg": 0}
        assert [(s.name, s.writer, s.number, s.finished) for s in await segments.all_known(conn)] == [
            ("1-aa-000000.seg", "1-aa", 0, True), ("1-aa-000001.seg", "1-aa", 1, False), ("2-bb-000000.seg", "2-bb", 0, True),
        ]  # fmt: skip
        assert await segments.purge(conn, 1.0) == 0
        assert await segments.purge(conn, 9e9) == 1, "one whose writer lives is kept with all before it"
        assert [s.name for s in await segments.all_known(conn)] == ["1-aa-000000.seg", "1-aa-000001.seg"]


async def test_what_was_forgotten_stays_so_though_a_late_row_makes_a_table_again(db: Database) -> None:
    await ship(db, [row(n, started_at=NOON + n * DAY_S) for n in range(3)])
    midnight = day_of(NOON) * DAY_S
    await days.drop_before(db, midnight + 2 * DAY_S)
    await ship(db, [row(9, started_at=NOON)])
    assert await days.drop_before(db, midnight + 2 * DAY_S) == ["usage_20260301"]
    async with db.read() as conn:
        assert await days.kept_from(conn) == day_of(NOON) + 2, "the day between was dropped, and is not missing"
