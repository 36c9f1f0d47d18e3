"""The rows and roll-ups that the bench makes by SQL are what booking would have made; and its verdict."""

from __future__ import annotations

from typing import Any

from bench.books import Measured, judged, kinds
from bench.ledger_rows import DAYS, Books, fill
from gateway.store import requests
from gateway.store.engine import Database
from gateway.store.usage import Wanted, whole_report
from gateway.store.verify import Found, days_to_verify, verify_day, verify_week, weeks_with

ROWS = 3000


async def test_the_roll_ups_are_those_of_the_rows(db: Database, database_url: str) -> None:
    books = Books(ROWS, "usr_first", users=40, keys=90)
    await fill(database_url, books)
    there, faults = await days_to_verify(db)
    assert (len(there), faults) == (DAYS, [])
    found = [await verify_day(db, day) for day in there]
    assert sum(one.rows for one in found) == ROWS
    assert {fault.kind for one in found for fault in one.faults} == {"row"}, "digests are not made; all else agrees"
    assert [await verify_week(db, week) for week in weeks_with(there)] == [Found()] * len(weeks_with(there))
    async with db.read() as conn:
        row: Any = await requests.usage_row(conn, books.request_id(17))
        assert row["cost_pusd"] == row["prompt_tokens"] * 150_000 + row["completion_tokens"] * 600_000
        for by in ("key", "model", "team", "arm"):
            assert len(await whole_report(conn, by, Wanted(books.first_s))) > 1
        assert (await whole_report(conn, "user", Wanted(user_id="usr_first")))[0].requests > ROWS / 40, "the busiest"


def test_every_kind_names_what_is_there() -> None:
    asked = [ask(0) for ask in kinds(Books(ROWS, "usr_first")).values()]
    assert {path.split("/requests")[0] for path, _ in asked} == {"/admin/usage", "/v1/usage"}
    assert len(asked) > 50


def measured(rows: int, p95_ms: float, read: float = 5.0) -> Measured:
    return Measured("sqlite", rows, {"a": {"p50_ms": 1, "p95_ms": p95_ms, "max_ms": 9}}, quiet_p99=[5.0, 5.2], read_p99=[read])


def test_the_verdict() -> None:
    assert judged(measured(10, 20), measured(99, 29)) == []
    assert len(judged(measured(10, 20), measured(99, 31))) == 1
    assert judged(measured(10, 70), measured(99, 90)) == []
    assert len(judged(measured(10, 90), measured(99, 101))) == 1
    assert len(judged(measured(10, 20), measured(99, 20, read=5.8))) == 1
