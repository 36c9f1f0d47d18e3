"""Hosts on one database know of each other, by its clock."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import text

from gateway.store import hosts, meta
from gateway.store.engine import Database
from gateway.store.hosts import FRESH_S, Host
from tests.host_rows import later


async def announce(db: Database, host_id: str, shares: bool = False, known_since_s: float | None = None) -> tuple[Host, list[Host]]:
    async with db.write() as conn:
        return await hosts.announce(conn, host_id, shares, known_since_s)


def ids(found: tuple[Host, list[Host]]) -> list[str]:
    return [other.id for other in found[1]]


async def test_each_sees_the_others_and_since_when_they_are_there(db: Database) -> None:
    a, others = await announce(db, "a")
    assert (a.id, a.since_s, a.shares, others) == ("a", a.seen_s, False, [])
    await later(db, 10)
    b, others = await announce(db, "b", True)
    [seen] = others
    assert (seen.id, seen.since_s, b.shares) == ("a", a.since_s - 10, True)
    assert seen.since_s < b.since_s
    again, others = await announce(db, "a")
    assert (again.since_s, others) == (a.since_s - 10, [b])
    assert again.seen_s >= b.seen_s


async def test_who_does_not_write_is_gone_and_comes_back_as_the_newest(db: Database) -> None:
    await announce(db, "a")
    await later(db, 1)
    await announce(db, "b")
    await later(db, FRESH_S - 11)
    assert ids(await announce(db, "b")) == ["a"]
    await later(db, 11)
    b, others = await announce(db, "b")
    assert others == []
    a, others = await announce(db, "a")
    assert (a.since_s, [other.id for other in others]) == (a.seen_s, ["b"])
    assert b.since_s < a.since_s


async def test_who_leaves_is_gone_at_once_and_a_process_that_stays_remembers(db: Database) -> None:
    before, _ = await announce(db, "a")
    await announce(db, "b")
    async with db.write() as conn:
        await hosts.leave(conn, "a")
    assert ids(await announce(db, "b")) == []
    assert (await announce(db, "a", known_since_s=before.since_s))[0].since_s == before.since_s


async def test_who_is_gone_for_a_day_leaves_no_row(db: Database) -> None:
    await announce(db, "a")
    await later(db, 86_401)
    await announce(db, "b")
    async with db.read() as conn:
        assert await meta.get(conn, "host:a") is None
        assert await meta.get(conn, "host:b") is not None


async def test_the_first_names_the_installation(db: Database) -> None:
    async with db.write() as conn:
        assert [await hosts.installation(conn, name) for name in ("one", "two")] == ["one", "one"]


@pytest.mark.parametrize("dialect", ["postgres"], indirect=True)
@pytest.mark.parametrize("ahead_s", [0, 40])
async def test_only_the_databases_clock_counts(db: Database, ahead_s: int) -> None:
    """Those of two hosts may be far from each other. Here the database's goes on, and that of this host does not."""
    await announce(db, "a")
    async with db.write() as conn:
        await conn.execute(text("CREATE SCHEMA moved"))
        clock = f"SELECT pg_catalog.clock_timestamp() + interval '{ahead_s} s'"
        await conn.execute(text(f"CREATE FUNCTION moved.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $${clock}$$"))
        await conn.execute(text("SET LOCAL search_path = moved, pg_catalog, public"))
        b, others = await hosts.announce(conn, "b", False)
    assert [other.id for other in others] == (["a"] if ahead_s < FRESH_S else [])
    assert abs(b.seen_s - time.time() - ahead_s) < 5


async def test_of_two_that_start_together_the_second_sees_the_first(db: Database, database_url: str) -> None:
    other = Database(database_url)
    async with db.write() as conn:
        a, none = await hosts.announce(conn, "a", False)
        waiting = asyncio.create_task(announce(other, "b"))
        assert not (await asyncio.wait((waiting,), timeout=0.3))[0], "it waits for what the first is about to write"
    b, others = await waiting
    assert (none, others) == ([], [a])
    assert a.since_s < b.since_s
    await other.close()
