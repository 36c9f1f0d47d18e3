"""Every report, with every filter and at ragged ends, says what a recount of the rows says."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.store import booking, usage
from gateway.store.engine import Database
from gateway.store.usage import BYS, By, UsageLine, Used, Wanted

from .test_usage import NOON, row

DAY_S = 86_400.0
MIDNIGHT = NOON - 12 * 3600


def rows_at_random(many: int, seed: int = 3, days: int = 6) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for number in range(many):
        user = rng.randrange(6)
        arm = rng.choice([("summer", "a"), ("summer", "b"), ("chat", "canary"), (None, None), (None, None)])
        found.append(
            row(
                number,
                started_at=MIDNIGHT + rng.uniform(0, days) * DAY_S,
                user_id=f"u{user}",
                key_id=rng.choice([f"k{user}", f"k{user}x", None]),
                team_id=rng.choice(["t1", "t2"]) if user == 1 else (None if user == 2 else f"t{user % 3}"),  # one moved, one is of none
                model=rng.choice(["chat", "embed", "rerank"]),
                backend=rng.choice(["b1", "b2", None]),
                ending=rng.choice(["success", "timeout"]),
                revision=rng.choice([9, 10]),
                experiment=arm[0],
                arm=arm[1],
                prompt_tokens=rng.randrange(100),
                completion_tokens=rng.randrange(100),
                cached_tokens=rng.randrange(10),
                reasoning_tokens=rng.randrange(10),
                cost_pusd=rng.randrange(10**13),
            )
        )
    return found


def group_of(by: By, one: dict[str, Any]) -> Any:
    if by in ("day", "hour"):
        start = datetime.fromtimestamp(one["started_at"], UTC)
        return start.strftime("%Y-%m-%d" if by == "day" else "%Y-%m-%dT%H:00:00Z")
    if by == "arm":
        return (one["experiment"], one["arm"])
    if by == "version":
        return str(one["revision"])
    return one[{"key": "key_id", "user": "user_id", "team": "team_id"}.get(by, by)] or ""


def recount(by: By, wanted: Wanted, rows: list[dict[str, Any]]) -> dict[Any, tuple[int, ...]]:
    start = wanted.since_s // 3600 * 3600
    end = float("inf") if wanted.until_s is None else -(-wanted.until_s // 3600) * 3600
    sums: dict[Any, list[int]] = defaultdict(lambda: [0] * 6)
    for one in rows:
        if not start <= one["started_at"] < end or (by == "arm" and one["arm"] is None):
            continue
        given = {"user_id": wanted.user_id, "key_id": wanted.key_id, "model": wanted.model, "team_id": wanted.team_id}
        if any(value and one[name] != value for name, value in given.items()):
            continue
        names = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_pusd")
        for at, value in enumerate((1, *(one[name] for name in names))):
            sums[group_of(by, one)][at] += value
    return {group: tuple(values) for group, values in sums.items()}


def told(by: By, lines: list[UsageLine]) -> dict[Any, tuple[int, ...]]:
    found = {
        (line.experiment, line.group) if by == "arm" else line.group: (
            line.requests, line.prompt_tokens, line.completion_tokens, line.cached_tokens, line.reasoning_tokens, line.cost_pusd,
        )
        for line in lines
    }  # fmt: skip
    assert len(found) == len(lines), "a group twice"
    return found


SPANS = (
    (0.0, None),
    (MIDNIGHT + 3.7 * 3600, None),
    (MIDNIGHT + DAY_S, MIDNIGHT + 4 * DAY_S),
    (MIDNIGHT + 0.5 * DAY_S, MIDNIGHT + 3.3 * DAY_S),
    (MIDNIGHT + 2.2 * DAY_S, MIDNIGHT + 2.6 * DAY_S),
    (MIDNIGHT + 1.9 * DAY_S, MIDNIGHT + 2.1 * DAY_S),
    (MIDNIGHT + 4 * DAY_S, MIDNIGHT + 11 * DAY_S),  # a week, as they are counted: from Thursday to Thursday
    (MIDNIGHT + 3.5 * DAY_S, MIDNIGHT + 18 * DAY_S),
    (MIDNIGHT + 0.3 * DAY_S, MIDNIGHT + 20.2 * DAY_S),
    (MIDNIGHT + 4.1 * DAY_S, MIDNIGHT + 17.9 * DAY_S),
)
FILTERS: tuple[dict[str, str], ...] = (
    {},
    {"model": "chat"},
    {"team_id": "t1"},
    {"team_id": "t1", "model": "embed"},
    {"user_id": "u1"},
    {"key_id": "k3"},
    {"user_id": "u1", "model": "chat", "team_id": "t2"},
    {"key_id": "none"},
)


@pytest.mark.parametrize("chosen", FILTERS, ids=lambda chosen: "+".join(chosen) or "all")
async def test_reports_equal_a_recount(db: Database, chosen: dict[str, str]) -> None:
    rows = rows_at_random(1500, days=21)
    async with db.write() as conn:
        await booking.insert_usage(conn, rows[:900], "a.seg", 1)
        await booking.insert_usage(conn, rows[800:], "a.seg", 2)
    async with db.read() as conn:
        for since_s, until_s in SPANS:
            wanted = Wanted(since_s, until_s, **chosen)  # type: ignore[arg-type]  # strings all
            for by in BYS:
                lines = await usage.whole_report(conn, by, wanted)
                assert told(by, lines) == recount(by, wanted, rows), (by, wanted)


@pytest.mark.parametrize("by", BYS)
async def test_pages_are_the_whole(db: Database, by: By) -> None:
    async with db.write() as conn:
        await booking.insert_usage(conn, rows_at_random(400), "a.seg", 1)
    for chosen in (Wanted(), Wanted(model="chat"), Wanted(user_id="u1"), Wanted(team_id="t1"), Wanted(MIDNIGHT + 1.4 * DAY_S)):
        async with db.read() as conn:
            whole = await usage.whole_report(conn, by, chosen)
            paged: list[UsageLine] = []
            after: str | None = ""
            while after is not None:
                page, after = await usage.report(conn, by, chosen, after=after, limit=2)
                assert len(page) <= 2
                paged += page
        assert paged == whole


async def test_the_team_that_nobody_is_of_used_nothing(db: Database) -> None:
    async with db.write() as conn:
        await booking.insert_usage(conn, [row(1, team_id=None)], "a.seg", 1)
    async with db.read() as conn:
        assert await usage.whole_report(conn, "key", Wanted(team_id="")) == []
        assert [line.group for line in await usage.whole_report(conn, "team", Wanted())] == [""]


@pytest.mark.parametrize("place", ["x", "nmany", "1"])
async def test_what_is_no_place_is_refused(db: Database, place: str) -> None:
    async with db.read() as conn:
        with pytest.raises(ValueError, match=r"place|base 10"):
            await usage.report(conn, "key", Wanted(), after=place)


async def test_what_counts_against_budgets(db: Database) -> None:
    rows = rows_at_random(600, days=21)
    async with db.write() as conn:
        await booking.insert_usage(conn, rows, "a.seg", 1)
    start = MIDNIGHT + 2 * DAY_S

    def used(**only: Any) -> Used:
        mine = [r for r in rows if r["started_at"] >= start and all(r[name] == value for name, value in only.items())]
        return Used(sum(r["cost_pusd"] for r in mine), sum(r["prompt_tokens"] + r["completion_tokens"] for r in mine))

    async with db.read() as conn:
        assert await usage.used_since(conn, "key", {"k1": start, "none": start}) == {"k1": used(key_id="k1")}
        assert await usage.used_since(conn, "user", {"u1": start}) == {"u1": used(user_id="u1")}
        assert await usage.used_since(conn, "team", {"t1": start, "t2": start}) == {"t1": used(team_id="t1"), "t2": used(team_id="t2")}
        assert await usage.used_since(conn, "model", {"chat": start}) == {"chat": used(model="chat")}
        assert (await usage.used_since(conn, "key", {"k1": start, "k2": 0}))["k1"] == used(key_id="k1"), "each its own window"


async def test_no_report_reads_rows(db: Database) -> None:
    """Whatever the report, with the rows gone it says the same."""
    rows = rows_at_random(300)
    async with db.write() as conn:
        await booking.insert_usage(conn, rows, "a.seg", 1)
        for day in {int(r["started_at"] // DAY_S) for r in rows}:
            await conn.exec_driver_sql(f"DROP TABLE usage_{datetime.fromtimestamp(day * DAY_S, UTC):%Y%m%d}")
    async with db.read() as conn:
        for by in BYS:
            for chosen in FILTERS:
                wanted = Wanted(MIDNIGHT + 3.5 * 3600, **chosen)  # type: ignore[arg-type]  # strings all
                assert told(by, await usage.whole_report(conn, by, wanted)) == recount(by, wanted, rows)
