"""Spending is of one window: what was read in the last one says nothing about the next."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime

from auth.principal import Budget, Limits
from gateway.metering.record import UsageRecord
from gateway.store import booking
from gateway.store.engine import Database
from gateway.store.spending import Spending


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


async def test_a_users_budget_counts_what_logins_spent_and_not_what_keys_did(db: Database) -> None:
    now_s = at("2026-03-10T12:00")
    spending = Spending(lambda: now_s)
    by_login = UsageRecord("r1", now_s - 60, "chat", None, "usr_1", "m", 1, cost_pusd=7)
    others = (
        replace(by_login, request_id="r2", key_id="k", cost_pusd=100),
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
            },
        )
    assert [spending.spent(i, w)[0] for i, w in (("user:usr_1", "day"), ("user:usr_3", None), ("k", "day"))] == [7, 0, 100]
