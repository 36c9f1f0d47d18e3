"""Spending is of one window: what was read in the last one says nothing about the next."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from auth.principal import Budget, Limits, TokenBudget
from gateway.metering.record import UsageRecord
from gateway.store import booking, days, keys
from gateway.store.engine import Database
from gateway.store.keys import ApiKey
from gateway.store.spending import Spending, spent_in_windows
from gateway.store.tables import metadata


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


async def test_spending_ends_with_its_window(db: Database) -> None:
    now_s = at("2026-03-10T12:00")
    spending = Spending(lambda: now_s)
    record = UsageRecord("r1", at("2026-03-10T11:00"), "chat", "k", "u", "m", 1, cost_pusd=7)
    earlier = replace(record, request_id="r2", started_at=at("2026-03-02T11:00"), cost_pusd=5)
    async with db.write() as conn:
        await booking.insert_usage(conn, [asdict(record), asdict(earlier)], "segment", 1)
    async with db.read() as conn:
        await spending.read(conn, {"k": Limits(budget=Budget(10, "day"))})
    assert spending.spent("k", "day")[0] == 7
    assert spending.spent("k", "month")[0] == 0  # not read
    assert spending.spent("other", "day")[0] == 0
    now_s = at("2026-03-11T00:00")
    assert spending.spent("k", "day")[0] == 0
    async with db.read() as conn:
        await spending.read(conn, {"k": Limits(budget=Budget(10, "month"))})
    assert spending.spent("k", "month")[0] == 12
    now_s = at("2030-01-01")
    async with db.read() as conn:
        await spending.read(conn, {"k": Limits(budget=Budget(10))})
    assert spending.spent("k", None)[0] == 12


async def test_a_users_budget_counts_all_of_theirs(db: Database) -> None:
    now_s = at("2026-03-10T12:00")
    spending = Spending(lambda: now_s)
    by_login = UsageRecord("r1", now_s - 60, "chat", None, "usr_1", "m", 1, cost_pusd=7)
    others = (
        replace(by_login, request_id="r2", key_id="k", team_id="t", cost_pusd=100, prompt_tokens=8, completion_tokens=1),
        replace(by_login, request_id="r3", user_id="usr_2", cost_pusd=3),
    )
    async with db.write() as conn:
        await booking.insert_usage(conn, [asdict(record) for record in (by_login, *others)], "segment", 1)
    async with db.read() as conn:
        await spending.read(
            conn,
            {
                "user:usr_1": Limits(budget=Budget(10, "day")),
                "user:usr_3": Limits(budget=Budget(10)),
                "k": Limits(budget=Budget(200, "day")),
                "team:t": Limits(token_budget=TokenBudget(5, "week")),
                "model:m": Limits(budget=Budget(5, "week")),
            },
        )
    asked = (("user:usr_1", "day"), ("user:usr_3", None), ("k", "day"), ("team:t", "week"), ("model:m", "week"))
    assert [spending.spent(*one) for one in asked] == [(107, 9), (0, 0), (100, 9), (100, 9), (110, 9)]


@pytest.mark.parametrize("limit_id", ["k", "user:u", "team:t", "model:m"])
async def test_what_was_spent_before_a_budget_was_set_back_does_not_count(db: Database, limit_id: str) -> None:
    """To the request: within the hour, in the rest of the day, and on the days after."""
    reset_s = at("2026-03-10T11:20:30.5")
    made = UsageRecord("r", 0, "chat", "k", "u", "m", 1, team_id="t")
    times = {
        "2026-03-09T23:00": 1,
        "2026-03-10T11:20:30": 10,
        "2026-03-10T11:20:31": 100,
        "2026-03-10T13:00": 1000,
        "2026-03-11T00:00": 10_000,
    }
    rows = [replace(made, request_id=text, started_at=at(text), cost_pusd=cost, prompt_tokens=cost) for text, cost in times.items()]
    async with db.write() as conn:
        owner = {"id": "u", "email": "u@localhost", "role": "member", "token_epoch": 0, "created_at": 1.0}
        await conn.execute(metadata.tables["users"].insert().values(owner))
        await keys.insert_key(conn, ApiKey("k", "u", "k", ("*",), ("inference",), Limits(), 1.0), b"digest")
        await booking.insert_usage(conn, [asdict(row) for row in rows], "segment", 1)
    for since_s, expected in ((None, 11_111), (reset_s, 11_100), (at("2026-03-10T11:00"), 11_110), (at("2026-03-11T00:00"), 10_000)):
        async with db.read() as conn:
            found = await spent_in_windows(conn, {limit_id: Limits(budget=Budget(1), since=since_s)}, at("2026-03-11T12:00"))
        assert found == {(limit_id, None): (expected, expected)}, since_s
    async with db.read() as conn:  # the window that began after it counts whole
        found = await spent_in_windows(conn, {limit_id: Limits(budget=Budget(1, "day"), since=reset_s)}, at("2026-03-11T12:00"))
    assert found == {(limit_id, "day"): (10_000, 10_000)}
    await days.drop_before(db, at("2026-03-11T00:00"))  # the rows are dropped: the whole hour counts, rather than none of it
    async with db.read() as conn:
        assert (await spent_in_windows(conn, {limit_id: Limits(budget=Budget(1), since=reset_s)}, reset_s))[limit_id, None][0] == 11_110


async def test_many_that_were_set_back_at_times_of_their_own(db: Database) -> None:
    """Also on different days, and more of them than are asked for at once."""
    noon_s = at("2026-03-10T12:00")
    moments = {f"k{number}": noon_s + number * 977.5 for number in range(120)}
    made = UsageRecord("r", 0, "chat", "k", "u", "m", 1)
    rows = [
        replace(made, request_id=f"{name} {offset_s}", key_id=name, started_at=since_s + offset_s, cost_pusd=cost)
        for name, since_s in moments.items()
        for offset_s, cost in ((-0.25, 1), (0.0, 10), (5000.0, 100), (200_000.0, 1000))
    ]
    async with db.write() as conn:
        await booking.insert_usage(conn, [asdict(row) for row in rows], "segment", 1)
    limits = {name: Limits(budget=Budget(1), since=since_s) for name, since_s in moments.items()}
    async with db.read() as conn:
        found = await spent_in_windows(conn, limits, noon_s + 1e6)
    assert {spent for spent, _ in found.values()} == {1110}


@pytest.mark.parametrize("limit_id", ["k", "user:u", "team:t", "model:m"])
async def test_a_budget_that_was_set_back_in_the_last_second_of_a_day_without_rows(db: Database, limit_id: str) -> None:
    next_day = UsageRecord("r", at("2026-03-11T00:00:01"), "chat", "k", "u", "m", 1, team_id="t", cost_pusd=5)
    async with db.write() as conn:
        await booking.insert_usage(conn, [asdict(next_day)], "segment", 1)
    reset = {limit_id: Limits(budget=Budget(9), since=at("2026-03-10T23:59:59.5"))}
    async with db.read() as conn:
        assert await spent_in_windows(conn, reset, at("2026-03-11T01:00")) == {(limit_id, None): (5, 0)}
